"""Every shared vector against production functions: they agree wherever our policy applies."""

import base64
import socket
from collections import Counter
from typing import Any

import pytest

from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.encoding import b64u_encode, sha256
from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import ed25519_public_key, parse_jwk

from . import adapter
from .shared import b, cases, load

pytestmark = pytest.mark.vectors

# Valid signatures by algorithms that section 1 excludes: exactly these are refused.
REFUSED_BUT_VALID = {
    "wycheproof_jws": {
        "HS256": {1, 348, 352, 357, 358, 359, 372, 373, 376, 377},
        "RS256": {33, 259, 260, 261, 262, 263, 345, 349},
        "RS384": {264, 265, 266, 267},
        "RS512": {268, 269, 270, 271},
        "PS256": {272, 273, 274, 275, 287, 288, 346, 350},
        "PS384": {320, 321, 322, 323},
        "PS512": {325, 326, 327, 328},
        "ES521": {347, 351},
    },
    "wycheproof_jwk": {"HS256": {2, 13}, "HS384": {14}, "HS512": {15}, "RS256": {5}},
    "wycheproof_jwcrypto": {"HS256": {1, 48}, "RS256": {33}},
}

# The section 8 reason of each refusal. For an absent proof protocol.md (`invalid_dpop_proof`,
# `malformed`) overrides the case file's `invalid_token`, since protocol.md is newer.
DPOP_REASONS = {
    "malformed": (
        "1 2 3 5 6 7 8 9 10 11 12 13 15 16 18 19 21 22 23 25 27 31 32 39 40 42 43 47 58 61 82 87 "
        "88 93"
    ),
    "signature": "34 36 37",
    "method": "44 45 98",
    "url": "48 49 50 51 53 55 57",
    "iat": "59 60 64 65",
    "ath": "66 67 70",
    "replayed": "78 79",
}
TOKEN_REASONS = {
    "unknown": "7 8 9 10 11 13 14 29 32 33 34 63 65",
    "expired": "21",
    "not_yet_valid": "27 28",
}


def reason_table(prefix: str, table: dict[str, str]) -> dict[str, str]:
    return {
        f"{prefix}-{number}": reason
        for reason, numbers in table.items()
        for number in numbers.split()
    }


def test_ed25519_wycheproof() -> None:
    for group in load("wycheproof_ed25519")["testGroups"]:
        for case in group["tests"]:
            accepted = adapter.ed25519_verify(
                b(group["publicKey"]["pk"]), b(case["msg"]), b(case["sig"])
            )
            assert accepted is (case["result"] == "valid"), case["tcId"]


def test_ed25519_low_order_points_are_all_refused() -> None:
    refused = 0
    for number, key, signature, message, flags in load("cctv_ed25519")["vectors"]:
        if {"low_order_A", "low_order_R"} & set(flags or []):
            assert not adapter.ed25519_verify(b(key), message.encode(), b(signature)), number
            refused += 1
    assert refused == 808


def test_ed25519_speccheck_row_is_the_strict_one() -> None:
    row = [
        adapter.ed25519_verify(b(case["pub_key"]), b(case["message"]), b(case["signature"]))
        for case in load("ed25519_speccheck")["cases"]
    ]
    assert "".join("V" if accepted else "X" for accepted in row) == "XXXVXXXXXXXX"


def test_JK_22_mixed_order_key_of_speccheck_cannot_be_registered() -> None:
    case = load("ed25519_speccheck")["cases"][3]
    given = b(case["pub_key"]), b(case["message"]), b(case["signature"])
    assert adapter.ed25519_verify(*given)
    assert not adapter.ed25519_verify(*given, registered=False)


def test_es256_wycheproof() -> None:
    for group in load("wycheproof_es256_p1363")["testGroups"]:
        point = b(group["publicKey"]["uncompressed"])
        jwk = {
            "kty": "EC",
            "crv": "P-256",
            "x": b64u_encode(point[1:33]),
            "y": b64u_encode(point[33:]),
        }
        for case in group["tests"]:
            accepted = adapter.es256_verify(jwk, b(case["msg"]), b(case["sig"]))
            assert accepted is (case["result"] == "valid"), case["tcId"]


@pytest.mark.parametrize("name", list(REFUSED_BUT_VALID))
def test_jws_wycheproof(name: str) -> None:
    refused: dict[str, set[int]] = {}
    count = Counter[str]()
    for group in load(name)["testGroups"]:
        key = group.get("public") or group.get("private")
        for case in group["tests"]:
            if not isinstance(case.get("jws"), str):
                # encryption, and the JSON serialisation as an object: no compact text to read
                continue
            accepted, valid = adapter.jws_verify(case["jws"], key), case["result"] == "valid"
            assert valid or not accepted, (group["comment"], case["tcId"])
            count["accepted" if accepted else "refused"] += 1
            if valid and not accepted:
                refused.setdefault((key.get("keys") or [key])[0]["alg"], set()).add(case["tcId"])
    assert refused == REFUSED_BUT_VALID[name]
    assert (
        count["accepted"]
        == {"wycheproof_jws": 2, "wycheproof_jwk": 0, "wycheproof_jwcrypto": 1}[name]
    )


def test_merkle_proofs() -> None:
    def read(text: str | None) -> bytes:
        return base64.b64decode(text or "")

    for case in load("merkle_proofs")["cases"]:
        path = [read(part) for part in case["proof"] or []]
        if "leafIdx" in case:
            accepted = adapter.merkle_inclusion(
                case["leafIdx"], case["treeSize"], read(case["leafHash"]), path, read(case["root"])
            )
        else:
            accepted = adapter.merkle_consistency(
                case["size1"], case["size2"], path, read(case["root1"]), read(case["root2"])
            )
        assert accepted is not case["wantErr"], case["file"]


@pytest.fixture
def _no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys named by a URL must not be requested: any connection, even loopback, fails the test."""

    def refuse(*arguments: Any) -> None:
        raise AssertionError("a vector made the code open a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("_no_connections")
@pytest.mark.parametrize("case", cases("own_dpop_cases"))
def test_own_dpop(case: Any) -> None:
    doc = load("own_dpop_cases")
    earlier = [other for other in doc["cases"] if other["id"] == case.get("after")]
    assert len(earlier) == ("after" in case)
    refusal = adapter.dpop_outcome(doc, case, earlier)
    assert (refusal is None) is (case["expect"] == "accept")
    if refusal is not None:
        wanted = {case["error"], *case.get("error_alt", [])}
        assert refusal.code in (wanted if case["id"] != "DP-1" else {"invalid_dpop_proof"})
        if refusal.code == "invalid_dpop_proof":
            assert refusal.reason == reason_table("DP", DPOP_REASONS)[case["id"]]
    if case["id"] == "DP-35":
        assert refusal is not None
        assert refusal.reason == "binding"


@pytest.mark.usefixtures("_no_connections")
@pytest.mark.parametrize("case", cases("own_token_cases"))
def test_own_token(case: Any) -> None:
    refusal = adapter.token_outcome(load("own_token_cases"), case)
    assert (refusal is None) is (case["expect"] == "accept")
    if refusal is not None:
        assert refusal.code == "invalid_token"
        assert refusal.reason == reason_table("JT", TOKEN_REASONS).get(case["id"], "malformed")


@pytest.mark.parametrize("case", cases("own_passkey_cases"))
def test_own_passkey(case: Any) -> None:
    refusal = adapter.passkey_outcome(load("own_passkey_cases"), case)
    assert (refusal is None) is (case["expect"] == "accept")
    if refusal is not None:
        assert refusal.code == "invalid_assertion"


def test_rfc_9449_proofs() -> None:
    example = load("rfc_examples")["rfc9449"]
    assert parse_jwk(example["jwk"]).thumbprint == example["jkt"]
    for proof in example["proofs"]:
        at_resource = proof["use"] == "resource request"
        verified = verify_proof(
            proof["jwt"],
            expected_method=proof["htm"],
            expected_url=proof["htu"],
            access_token=example["access_token"] if at_resource else None,
            body=None,
            now=proof["iat"],
        )
        assert verified.jkt == example["jkt"]
    assert b64u_encode(sha256(example["access_token"].encode())) == example["ath"]


def test_rfc_8037_example() -> None:
    example = load("rfc_examples")["rfc8037"]
    public = {name: value for name, value in example["jwk_private"].items() if name != "d"}
    key = parse_jwk(public)
    assert key.thumbprint == example["thumbprint"]
    jws = parse_compact(example["jws"])
    key.verify(jws.signing_input, jws.signature, alg=str(jws.header["alg"]))
    assert jws.payload.decode() == example["payload"]


def test_rfc_6979_rejection_sampling_signature() -> None:
    example = load("rfc_examples")["rfc6979_p256_rejection"]
    from cryptography.hazmat.primitives.asymmetric import ec

    numbers = (
        ec.derive_private_key(int(example["x"], 16), ec.SECP256R1()).public_key().public_numbers()
    )
    x, y = (b64u_encode(part.to_bytes(32, "big")) for part in (numbers.x, numbers.y))
    jwk = {"kty": "EC", "crv": "P-256", "x": x, "y": y}
    signature = b(example["r"]) + b(example["s"])
    assert adapter.es256_verify(jwk, example["message"].encode(), signature)


def test_signed_note_example() -> None:
    example = load("rfc_examples")["signed_note"]
    key = ed25519_public_key(base64.b64decode(example["vkey"].split("+", 2)[2])[1:])
    signature = base64.b64decode(example["signature_line"].split()[2])[4:]
    key.verify(example["text"].encode(), signature, alg="EdDSA")


def test_every_low_order_encoding_is_refused_as_a_key() -> None:
    for encoding in load("rfc_examples")["ed25519_low_order_encodings_hex"]:
        with pytest.raises(InvalidKeyError):
            ed25519_public_key(b(encoding))
