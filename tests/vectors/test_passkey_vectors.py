"""The W3C's example ceremonies against our assertion check; a table explains policy refusals."""

import json
from typing import Any

import cbor2
import pytest

from agentauth.protocol.encoding import b64u_encode

from . import adapter
from .shared import b, load

pytestmark = pytest.mark.vectors

# Valid ceremonies that we refuse: we require user verification, no embedding, and one of three
# algorithms.
REFUSED = {
    "none-es256": "not verified",
    "packed-self-es256": "not verified",
    "none-es256-crossOrigin": "embedded",
    "none-es256-topOrigin": "embedded",
    "packed-es384": "algorithm",
    "packed-es512": "algorithm",
    "packed-rs256": "not verified",
    "packed-eddsa": "not verified",
    "packed-ed448": "algorithm",
    "android-key-es256": "not verified",
    "apple-es256": "not verified",
    "fido-u2f-es256": "not verified",
}


ACCEPTED = {"none-es256-long-credential-id", "packed-es256", "tpm-es256"}
ALGORITHMS = {-7, -8, -257}  # ES256, EdDSA, RS256


def stored_key(registration: dict[str, str]) -> bytes:
    """The COSE key behind the credential id in a registration's authenticator data."""
    data = cbor2.loads(b(registration["attestationObject"]))["authData"]
    start = 55 + int.from_bytes(data[53:55], "big")
    return cbor2.dumps(cbor2.loads(data[start:]), canonical=True)


def case_of(vector: dict[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """The vector in the form of the project's own passkey cases."""
    doc = load("webauthn_l3_vectors")
    registration = vector["registration"]
    answer = vector["authentication"]
    credential_id = b64u_encode(b(registration["credential_id"]))
    names = ("clientDataJSON", "authenticatorData", "signature")
    response = {name: b64u_encode(b(answer[name])) for name in names}
    case = {
        "stored": {"public_key_cose_b64u": b64u_encode(stored_key(registration)), "sign_count": 0},
        "credential": {
            "id": credential_id,
            "rawId": credential_id,
            "type": "public-key",
            "response": response,
        },
    }
    shared = {
        "challenge_b64u": b64u_encode(b(answer["challenge"])),
        "rp_id": doc["rp_id"],
        "origin": doc["origin"],
        "credential_id_b64u": credential_id,
        "user_handle_b64u": "",
    }
    return shared, case


def why_refused(vector: dict[str, Any]) -> str | None:
    """The reason, read from the ceremony itself, not from our code."""
    answer = vector["authentication"]
    client_data = json.loads(b(answer["clientDataJSON"]))
    if cbor2.loads(stored_key(vector["registration"]))[3] not in ALGORITHMS:
        return "algorithm"
    if client_data["crossOrigin"] or "topOrigin" in client_data:
        return "embedded"
    return None if b(answer["authenticatorData"])[32] & 0x04 else "not verified"


def test_w3c_ceremonies_meet_the_policy() -> None:
    refused, accepted = {}, set()
    for vector in load("webauthn_l3_vectors")["vectors"]:
        if "authentication" not in vector:
            continue
        name = vector["anchor"].removeprefix("sctn-test-vectors-")
        if adapter.passkey_outcome(*case_of(vector)) is None:
            accepted.add(name)
        else:
            refused[name] = why_refused(vector)
    assert accepted == ACCEPTED
    assert refused == REFUSED
