"""JOSE: one form of JWS, two algorithms, and no type is taken for another."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import EncodingError, InvalidSignatureError
from agentauth.protocol.jose import (
    VerifiedJws,
    parse_compact,
    sign_compact,
    split_compact,
    verify_jws,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey, parse_jwk

SIGNER = LocalSigner(PrivateKey.generate(), "k1")
GOOD = sign_compact({"a": 1}, SIGNER, typ="at+jwt", header={"kid": "k1"})


def forge(header: object, payload: bytes = b'{"a":1}') -> str:
    """A JWS with a valid signature over any header and payload."""
    head = header if isinstance(header, bytes) else json.dumps(header).encode()
    message = f"{b64u_encode(head)}.{b64u_encode(payload)}"
    return f"{message}.{b64u_encode(SIGNER.sign(message.encode()))}"


def verified(text: str, key: PublicKey, *, expected_typ: str) -> VerifiedJws:
    return verify_jws(parse_compact(text), key, expected_typ=expected_typ)


def test_what_was_signed_is_read() -> None:
    jws = verified(GOOD, SIGNER.public, expected_typ="at+jwt")
    assert jws.claims == {"a": 1}
    assert jws.header == {"alg": "EdDSA", "typ": "at+jwt", "kid": "k1"}


def test_the_example_of_rfc_8037_verifies() -> None:
    key = parse_jwk(
        {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    )
    jws = parse_compact(
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc.hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6d"
        "WbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg"
    )
    key.verify(jws.signing_input, jws.signature, alg=str(jws.header["alg"]))
    assert jws.payload == b"Example of Ed25519 signing"


def test_the_newer_name_of_the_algorithm_is_accepted() -> None:
    compact = forge({"alg": "Ed25519", "typ": "at+jwt", "jku": "http://127.0.0.1:9/"})
    assert verified(compact, SIGNER.public, expected_typ="at+jwt").claims == {"a": 1}


@pytest.mark.parametrize(
    "typ", ["JWT", "AT+JWT", "application/at+jwt", "at+jwtx", "dpop+jwt", "", None, ["at+jwt"], 1]
)
def test_one_kind_is_never_taken_for_another(typ: object) -> None:
    with pytest.raises(EncodingError):
        verified(forge({"alg": "EdDSA", "typ": typ}), SIGNER.public, expected_typ="at+jwt")


def test_a_missing_kind_is_refused() -> None:
    with pytest.raises(EncodingError):
        verified(forge({"alg": "EdDSA"}), SIGNER.public, expected_typ="at+jwt")


@pytest.mark.parametrize(
    "extra", [{"crit": ["x"], "x": 1}, {"crit": []}, {"b64": True}, {"b64": False}, {"zip": "DEF"}]
)
def test_extensions_are_refused(extra: dict[str, object]) -> None:
    with pytest.raises(EncodingError):
        parse_compact(forge({"alg": "EdDSA", "typ": "at+jwt", **extra}))


@pytest.mark.parametrize(
    "alg", ["none", "None", "", "HS256", "RS256", "ES384", "EdDsa", 1, None, ["EdDSA"], {}]
)
def test_other_algorithms_are_refused(alg: object) -> None:
    with pytest.raises(EncodingError):
        parse_compact(forge({"alg": alg, "typ": "at+jwt"}))


def test_the_algorithm_is_the_keys() -> None:
    with pytest.raises(InvalidSignatureError):
        verified(forge({"alg": "ES256", "typ": "at+jwt"}), SIGNER.public, expected_typ="at+jwt")
    with pytest.raises(InvalidSignatureError):
        verified(GOOD, PrivateKey.generate().public, expected_typ="at+jwt")
    with pytest.raises(InvalidSignatureError):
        verified(GOOD, PrivateKey.generate("ES256").public, expected_typ="at+jwt")


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"alg":"EdDSA","alg":"EdDSA"}',
        b"\xef\xbb\xbf{}",
        b'{"alg":"EdDSA","a":NaN}',
    ],
)
def test_a_header_is_one_json_object(header: bytes) -> None:
    with pytest.raises(EncodingError):
        parse_compact(forge(header))


@pytest.mark.parametrize(
    "payload", [b"[]", b"null", b"foo", b'{"a":1,"a":1}', b"[" * 3_000, b'{"a":Infinity}', b"\xff"]
)
def test_claims_are_one_json_object(payload: bytes) -> None:
    with pytest.raises(EncodingError):
        verified(
            forge({"alg": "EdDSA", "typ": "at+jwt"}, payload), SIGNER.public, expected_typ="at+jwt"
        )


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        GOOD + ".",
        "." + GOOD,
        GOOD + ".e30",
        GOOD + "\n",
        " " + GOOD,
        GOOD + "=",
        GOOD.rsplit(".", 1)[0],
        GOOD.rsplit(".", 1)[0] + ".",
        GOOD.replace(".", "..", 1),
        GOOD + "é",
        "A" * 8_193,
        '{"payload":"e30","signatures":[]}',
    ],
)
def test_only_the_compact_shape_is_read(text: str) -> None:
    with pytest.raises(EncodingError):
        parse_compact(text)


def test_the_size_limit_holds_to_the_byte() -> None:
    assert parse_compact(GOOD, max_bytes=len(GOOD)).header["alg"] == "EdDSA"
    with pytest.raises(EncodingError):
        parse_compact(GOOD, max_bytes=len(GOOD) - 1)


def test_a_text_has_at_most_8192_bytes() -> None:
    signature = GOOD.rsplit(".", 1)[1]
    longest, longer = (f"{header}.{'A' * 8_102}.{signature}" for header in ("AA", "AAA"))
    assert (len(longest), len(longer)) == (8_192, 8_193)
    split_compact(longest)
    with pytest.raises(EncodingError):
        split_compact(longer)


def test_a_number_with_a_fraction_is_never_signed() -> None:
    with pytest.raises(EncodingError):
        sign_compact({"exp": 1.5}, SIGNER, typ="at+jwt")


def test_a_caller_cannot_change_kind_or_algorithm_by_the_header() -> None:
    compact = sign_compact({}, SIGNER, typ="at+jwt", header={"typ": "dpop+jwt", "alg": "none"})
    assert parse_compact(compact).header == {"typ": "at+jwt", "alg": "EdDSA"}


@given(st.integers(0, len(GOOD) - 1), st.sampled_from("AQgw-_.=+ e\n\0"))
def test_no_changed_text_is_accepted(position: int, character: str) -> None:
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed == GOOD:
        return
    with pytest.raises((EncodingError, InvalidSignatureError)):
        verified(changed, SIGNER.public, expected_typ="at+jwt")
