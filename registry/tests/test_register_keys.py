"""Keys at registration, over HTTP: weak and foreign keys are refused, a `kid` is ignored."""

import json
import time
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner
from agentauth.protocol.tests.mixed_order import MixedSigner
from registry.models import Agent, BarredKey
from registry.tests.cast import AgentClient, assert_refused
from tests.time_limits import within

pytestmark = pytest.mark.django_db

P = 2**256 - 2**224 + 2**192 + 2**96 - 1
# A point of the curve: the base point's coordinates.
X = 0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296
Y = 0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5


def p256(x: bytes, y: bytes) -> dict[str, Any]:
    return {"kty": "EC", "crv": "P-256", "x": b64u_encode(x), "y": b64u_encode(y)}


def number(value: int, length: int = 32) -> bytes:
    return value.to_bytes(length, "big")


WEAK_POINTS: dict[str, dict[str, Any]] = {
    "the point at infinity": p256(bytes(32), bytes(32)),
    "off the curve": p256(number(X), number(Y + 1)),
    "x not below p": p256(number(P), number(Y)),
    "y not below p": p256(number(X), number(P + 5)),
    "all ones": p256(b"\xff" * 32, b"\xff" * 32),
    "31 bytes": p256(number(X)[1:], number(Y)),
    "33 bytes": p256(b"\0" + number(X), number(Y)),
    "y missing": {"kty": "EC", "crv": "P-256", "x": b64u_encode(number(X))},
    "another curve's name": p256(number(X), number(Y)) | {"crv": "secp256k1"},
    "compressed": p256(number(X), b"\x02"),
}


def _rsa(bits: int, exponent: int) -> dict[str, Any]:
    if exponent == 65_537 and bits <= 2048:
        modulus = rsa.generate_private_key(exponent, bits).public_key().public_numbers().n
    else:
        # Such a key takes too long to generate, and none is needed: only its size matters.
        modulus = 2**bits - 1
    size = (exponent.bit_length() + 7) // 8
    return {
        "kty": "RSA",
        "n": b64u_encode(number(modulus, bits // 8)),
        "e": b64u_encode(number(exponent, size)),
    }


def _registers(jwk: dict[str, Any], alg: str) -> None:
    """In the manifest (with a valid proof) and in the proof: refused at once, as a key."""
    client = AgentClient()
    head, _, tail = sign_compact(
        {}, client.signer, typ="agent-manifest+jwt", header={"jwk": jwk}
    ).partition(".")
    headers = {"alg": alg, "typ": "agent-manifest+jwt", "jwk": jwk}
    assert head
    manifest = f"{b64u_encode(json.dumps(headers).encode())}.{tail}"
    began = time.monotonic()
    body = assert_refused(client.register(manifest=manifest), 400, "invalid_manifest")
    proof = f"{b64u_encode(json.dumps(headers | {'typ': 'dpop+jwt'}).encode())}.{tail}"
    good = {"manifest": client.manifest()}
    answer = assert_refused(
        client.call("POST", "/v1/agents", good, proof=proof), 400, "invalid_dpop_proof"
    )
    # No computation uses the large modulus.
    assert time.monotonic() - began < within(5)
    assert answer["reason"] == "malformed"
    assert "signature" not in body["error_description"]
    assert not Agent.objects.exists()
    assert not BarredKey.objects.exists()


@pytest.mark.parametrize("jwk", WEAK_POINTS.values(), ids=WEAK_POINTS)
def test_JK_6_invalid_curve_point_cannot_be_registered(jwk: dict[str, Any]) -> None:
    _registers(jwk, "ES256")


@pytest.mark.parametrize(
    ("bits", "exponent"), [(1024, 65_537), (2048, 65_537), (2048, 1), (2048, 3), (16_384, 65_537)]
)
@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
def test_JK_7_an_rsa_key_of_any_size_registers_nothing(bits: int, exponent: int, alg: str) -> None:
    _registers(_rsa(bits, exponent), alg)


def test_JK_22_a_key_of_mixed_order_registers_nothing() -> None:
    """It signs both manifest and proof, and both signatures verify."""
    client = AgentClient()
    client.signer = cast("LocalSigner", MixedSigner())
    body = assert_refused(client.register(), 400, "invalid_manifest")
    assert "prime-order" in body["error_description"]
    assert not Agent.objects.exists()
    assert not BarredKey.objects.exists()


def test_JK_22_no_agent_takes_a_key_of_mixed_order(agent: AgentClient) -> None:
    body = {"new_key": agent.key_change(cast("LocalSigner", MixedSigner()))}
    answer = assert_refused(agent.call("POST", "/v1/agents/me/key", body), 400, "invalid_request")
    assert "prime-order" in answer["error_description"]
    assert agent.agent().jkt == agent.jkt


KIDS: tuple[Any, ...] = (
    "../../../../dev/null", "/etc/passwd", "file:token-x.pem", "x' OR '1'='1",
    "1; DROP TABLE kms_key--", "http://127.0.0.1:1/jwks",
    "arn:aws:kms:eu-west-1:1:key/x", "x" * 3000, "", " ", "\u202e", "%s", "{0}", None, 7, True,
    ["k1"], {"kid": "k1"},
)  # fmt: skip


@pytest.mark.parametrize("kid", KIDS)
def test_JK_20_a_manifests_kid_means_nothing(kid: Any) -> None:
    """The manifest contains the key itself; a `kid` beside it is not looked up anywhere."""
    client = AgentClient()
    claims = json.loads(b64u_decode(client.manifest().split(".")[1]))
    header = {"jwk": client.signer.public.jwk, "kid": kid}
    named = sign_compact(claims, client.signer, typ="agent-manifest+jwt", header=header)
    assert client.register(manifest=named).status_code == 201
    assert Agent.objects.get().jkt == client.jkt
