"""Receipts: they verify offline, and no field of one can change by a character."""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest

from agentauth.protocol.approval_receipt import (
    RECEIPT_TYP,
    VerifiedReceipt,
    build_receipt,
    verify_receipt,
)
from agentauth.protocol.cose import read_passkey
from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import (
    InvalidKeyError,
    InvalidReceiptError,
    InvalidRequestError,
    InvalidSignatureError,
)
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.passkey_statements import Statement, consent_sha256, parse_statement
from agentauth.protocol.statement_building import claim_statement

from .passkey import Passkey, cbor
from .test_passkey_statements import ALL, CONSENT, SIGNING, approval

ISSUER = "https://registry.example"
SIGNER = LocalSigner(PrivateKey.generate(), "receipt-1")
KEYS = {"receipt-1": SIGNER.public, "older": PrivateKey.generate().public}
PASSKEYS = {alg: Passkey(alg) for alg in ("ES256", "EdDSA", "RS256")}
PASSKEY = PASSKEYS["ES256"]


def receipt(statement: Statement, *, passkey: Passkey = PASSKEY, **changes: Any) -> str:
    terms: dict[str, Any] = {
        "credential_id": passkey.credential_id,
        "credential_public_key": passkey.cose,
        "human_id": str(statement.body["human_id"]),
        "consent_text": CONSENT,
        "signer": SIGNER,
        **passkey.answer(statement.challenge()),
    }
    return build_receipt(statement, **{**terms, **changes})


def verify(compact: str) -> VerifiedReceipt:
    return verify_receipt(compact, keys=KEYS, expected_issuer=ISSUER)


def claims_of(compact: str) -> dict[str, Any]:
    claims: dict[str, Any] = json.loads(b64u_decode(compact.split(".")[1]))
    return claims


def forged(claims: dict[str, Any]) -> str:
    """Signed by the registry's own key, as a dishonest registry would."""
    return sign_compact(claims, SIGNER, typ=RECEIPT_TYP, header={"kid": SIGNER.kid})


@pytest.mark.parametrize("alg", PASSKEYS)
@pytest.mark.parametrize("statement", ALL.values(), ids=ALL)
def test_a_receipt_of_every_kind_and_algorithm_verifies(statement: Statement, alg: str) -> None:
    verified = verify(receipt(statement, passkey=PASSKEYS[alg]))
    assert verified.statement == statement
    assert verified.passkey_alg == alg
    assert verified.consent_text == CONSENT
    assert verified.kid == "receipt-1"
    assert verified.human_id == statement.body["human_id"]
    assert verified.credential_id == PASSKEYS[alg].credential_id


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    children = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else None
    )
    if children is None:
        yield path
        return
    for key, child in children:
        yield from leaves(child, (*path, key))


def changed(claims: dict[str, Any], path: tuple[Any, ...]) -> dict[str, Any]:
    """The claims with the one leaf at `path` changed by a character, a unit or a truth."""
    result = deepcopy(claims)
    target = result
    for key in path[:-1]:
        target = target[key]
    value = target[path[-1]]
    if isinstance(value, bool):
        target[path[-1]] = not value
    elif isinstance(value, int):
        target[path[-1]] = value + 1
    elif value is None:
        target[path[-1]] = "x"
    else:
        middle = len(value) // 2
        # Another letter that keeps the grammar of ids, digests, money and base64url as often as
        # possible.
        replacement = "1" if value[middle] != "1" else "2"
        target[path[-1]] = value[:middle] + replacement + value[middle + 1 :]
    return result


RECEIPTS = {kind: receipt(statement) for kind, statement in ALL.items()}
FIELDS = [(kind, path) for kind, compact in RECEIPTS.items() for path in leaves(claims_of(compact))]
FIELD_IDS = [f"{kind}-{'.'.join(map(str, path))}" for kind, path in FIELDS]
# A passkey does not sign its own id: only the registry's signature covers that field.
UNSIGNED_BY_PASSKEY = ("credential_id",)


@pytest.mark.parametrize(("kind", "path"), FIELDS, ids=FIELD_IDS)
def test_AP_1_one_changed_character_breaks_the_registrys_signature(
    kind: str, path: tuple[Any, ...]
) -> None:
    header, _, signature = RECEIPTS[kind].split(".")
    payload = b64u_encode(json.dumps(changed(claims_of(RECEIPTS[kind]), path)).encode())
    with pytest.raises(InvalidReceiptError):
        verify(f"{header}.{payload}.{signature}")


@pytest.mark.parametrize(("kind", "path"), FIELDS, ids=FIELD_IDS)
def test_AP_1_a_field_changed_by_the_registry_breaks_the_signature(
    kind: str, path: tuple[Any, ...]
) -> None:
    claims = claims_of(RECEIPTS[kind])
    if path == UNSIGNED_BY_PASSKEY:
        assert verify(forged(changed(claims, path))).credential_id != PASSKEY.credential_id
        return
    assert verify(forged(claims)).statement.kind == kind
    with pytest.raises(InvalidReceiptError):
        verify(forged(changed(claims, path)))


STATEMENT_FIELDS = [
    (kind, path) for kind, path in FIELDS if path[0] in {"statement", "consent_text", "human_id"}
]


@pytest.mark.parametrize(
    ("kind", "path"),
    STATEMENT_FIELDS,
    ids=[f"{kind}-{'.'.join(map(str, path))}" for kind, path in STATEMENT_FIELDS],
)
def test_AP_1_a_liar_who_makes_every_hash_fit_still_lacks_the_passkey(
    kind: str, path: tuple[Any, ...]
) -> None:
    claims = changed(claims_of(RECEIPTS[kind]), path)
    statement = claims["statement"]
    if path[0] == "human_id":
        statement["human_id"] = claims["human_id"]
    claims["human_id"] = statement["human_id"]
    if path[-1] == "consent_sha256":
        claims["consent_text"] = "Something else."
    statement["consent_sha256"] = consent_sha256(claims["consent_text"])
    try:
        challenge = parse_statement(statement).challenge()
    except InvalidRequestError:
        pass  # the change broke the grammar: still refused, below
    else:
        client = json.loads(b64u_decode(claims["client_data_json"]))
        client["challenge"] = b64u_encode(challenge)
        claims["client_data_json"] = b64u_encode(json.dumps(client).encode())
    with pytest.raises(InvalidReceiptError):
        verify(forged(claims))


def test_client_data_has_up_to_4096_bytes() -> None:
    statement = ALL["approval"]
    room = 4096 - len(PASSKEY.answer(statement.challenge(), padding="")["client_data_json"])
    answer = PASSKEY.answer(statement.challenge(), padding="x" * room)
    verify(receipt(statement, **dict[str, Any](answer)))
    with pytest.raises(InvalidReceiptError, match="too long"):
        receipt(
            statement,
            **dict[str, Any](PASSKEY.answer(statement.challenge(), padding="x" * (room + 1))),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"origin": "https://registry.example.evil"}, "another origin"),
        ({"origin": "https://registry.example:8443"}, "another origin"),
        ({"rp_id": "evil.example"}, "another site"),
        ({"flags": 0x01}, "present and verified"),
        ({"flags": 0x04}, "present and verified"),
        ({"flags": 0x15}, "backup flags"),
        ({"flags": 0x45}, "length"),
        ({"flags": 0x85}, "length"),
        ({"trailing": b"\x00"}, "length"),
        ({"crossOrigin": True}, "embedded"),
        ({"crossOrigin": "false"}, "embedded"),
        ({"topOrigin": "https://evil.example"}, "embedded"),
        ({"type": "webauthn.create"}, "assertion"),
        ({"challenge": b64u_encode(bytes(32))}, "another statement"),
        ({"challenge": None}, "another statement"),
        ({"padding": "x" * 4096}, "too long"),
    ],
    ids=str,
)
def test_AP_12_AP_18_foreign_or_malformed_answer_is_no_receipt(
    changes: dict[str, Any], message: str
) -> None:
    statement = ALL["approval"]
    answer = dict[str, Any](PASSKEY.answer(statement.challenge(), **changes))
    with pytest.raises(InvalidReceiptError, match=message):
        receipt(statement, **answer)
    claims = claims_of(RECEIPTS["approval"])
    with pytest.raises(InvalidReceiptError, match=message):
        verify(forged({**claims, **{name: b64u_encode(value) for name, value in answer.items()}}))


def test_extension_data_and_a_synced_passkey_are_fine() -> None:
    statement = ALL["claim"]
    answer = dict[str, Any](PASSKEY.answer(statement.challenge(), flags=0x9D, trailing=cbor({})))
    assert verify(receipt(statement, **answer)).statement == statement


def test_AP_4_the_answer_for_one_statement_is_none_for_another() -> None:
    other = approval(grant_id="0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4099")
    with pytest.raises(InvalidReceiptError, match="another statement"):
        receipt(other, **dict[str, Any](PASSKEY.answer(ALL["approval"].challenge())))


def test_another_persons_passkey_or_another_key_is_refused() -> None:
    statement = ALL["approval"]
    with pytest.raises(InvalidReceiptError, match="does not belong to the human"):
        receipt(statement, human_id="0193a1b2-c3d4-7e5f-8a9b-0c1d2e3f4099")
    with pytest.raises(InvalidReceiptError, match="signature"):
        receipt(statement, credential_public_key=Passkey("ES256").cose)
    with pytest.raises(InvalidReceiptError, match="consent text"):
        receipt(statement, consent_text=CONSENT + " ")


def test_only_trusted_keys_of_this_issuer_and_this_kind_count() -> None:
    compact = RECEIPTS["approval"]
    for keys in ({}, {"receipt-2": SIGNER.public}, {"receipt-1": KEYS["older"]}):
        with pytest.raises(InvalidReceiptError):
            verify_receipt(compact, keys=keys, expected_issuer=ISSUER)
    with pytest.raises(InvalidReceiptError, match="another issuer"):
        verify_receipt(compact, keys=KEYS, expected_issuer="https://other.example")
    claims = claims_of(compact)
    headers: list[dict[str, Any]] = [
        {},
        {"kid": None},
        {"kid": ["receipt-1"]},
        {"jwk": SIGNER.public.jwk},
    ]
    for header in headers:
        with pytest.raises(InvalidReceiptError):
            verify(sign_compact(claims, SIGNER, typ=RECEIPT_TYP, header=header))
    for typ in ("JWT", "at+jwt", "agent-manifest+jwt"):
        with pytest.raises(InvalidReceiptError):
            verify(sign_compact(claims, SIGNER, typ=typ, header={"kid": SIGNER.kid}))


@pytest.mark.parametrize("name", list(claims_of(RECEIPTS["approval"])))
def test_every_claim_is_needed_and_no_other_is_allowed(name: str) -> None:
    claims = claims_of(RECEIPTS["approval"])
    with pytest.raises(InvalidReceiptError):
        verify(forged({key: value for key, value in claims.items() if key != name}))
    unfit: list[Any] = [None, "", 1, [], "=", {}]
    for value in unfit:
        with pytest.raises(InvalidReceiptError):
            verify(forged({**claims, name: value}))
    with pytest.raises(InvalidReceiptError):
        verify(forged({**claims, "note": "x"}))


@pytest.mark.parametrize(
    "text",
    ["", "a.b.c", "x" * 70_000, RECEIPTS["claim"] + "x", "\ud800"],
    ids=lambda t: ascii(t)[:8],
)
def test_malformed_receipt_is_refused(text: str) -> None:
    with pytest.raises(InvalidReceiptError):
        verify(text)


def test_a_long_consent_text_is_bounded() -> None:
    for length, fits in ((16_384, True), (16_385, False)):
        text = "x" * length
        statement = claim_statement(replace(SIGNING, consent_text=text))
        if fits:
            assert verify(receipt(statement, consent_text=text)).consent_text == text
        else:
            with pytest.raises(InvalidReceiptError, match="consent_text"):
                receipt(statement, consent_text=text)


def test_authenticator_data_that_is_too_short_is_named_as_such() -> None:
    answer = PASSKEY.answer(ALL["claim"].challenge())
    answer["authenticator_data"] = answer["authenticator_data"][:36]
    with pytest.raises(InvalidReceiptError, match="too short"):
        receipt(ALL["claim"], **dict[str, Any](answer))


def test_receipt_too_large_to_be_read_is_not_signed() -> None:
    assert verify(receipt(ALL["claim"], credential_id=bytes(1_023))).credential_id == bytes(1_023)
    with pytest.raises(InvalidReceiptError, match="65,536 bytes"):
        receipt(ALL["claim"], credential_id=bytes(45_000))


ES256, EDDSA, RS256 = (PASSKEYS[alg].labels for alg in ("ES256", "EdDSA", "RS256"))
COSE = PASSKEY.cose
BAD_KEYS: dict[str, bytes] = {
    "empty": b"",
    "not a map": cbor(5),
    "trailing byte": COSE + b"\x00",
    "cut": COSE[:-1],
    "cut in a head": COSE[:1],
    "one more label": cbor({**ES256, 2: b"kid"}),
    "one label less": cbor({label: value for label, value in ES256.items() if label != -3}),
    "a list": b"\x85" + COSE[1:],
    "text for bytes": COSE.replace(b"\x22\x58\x20", b"\x22\x78\x20"),
    "reserved head of bytes": COSE.replace(b"\x22\x58\x20", b"\x22\x5c\x20"),
    "text label": cbor({**ES256, "x": 1}),
    "text value": cbor({**ES256, -2: "x"}),
    "label twice": b"\xa6" + COSE[1:] + cbor(-3) + cbor(ES256[-3]),
    "integer for bytes": cbor({**ES256, -2: 5}),
    "indefinite map": b"\xbf" + COSE[1:] + b"\xff",
    "long head": b"\xb8\x05" + COSE[1:],
    "long integer": b"\xa5\x18\x01" + COSE[2:],
    "reserved head": b"\xbc" + COSE[1:],
    "ES256 with another curve": cbor({**ES256, -1: 2}),
    "ES256 off the curve": cbor({**ES256, -3: bytes(32)}),
    "ES256 short": cbor({**ES256, -2: b"\x01"}),
    "ES256 as EdDSA": cbor({**ES256, 3: -8}),
    "ES384": cbor({**ES256, 3: -35}),
    "EdDSA of small order": cbor({**EDDSA, -2: b"\x01" + bytes(31)}),
    "EdDSA not canonical": cbor({**EDDSA, -2: b"\xff" * 32}),
    "EdDSA with another curve": cbor({**EDDSA, -1: 7}),
    "RS256 short": cbor({**RS256, -1: b"\xff" * 255}),
    "RS256 long": cbor({**RS256, -1: b"\xff" * 1025}),
    "RS256 even": cbor({**RS256, -1: b"\xff" * 255 + b"\xfe"}),
    "RS256 exponent 3": cbor({**RS256, -2: b"\x03"}),
    "RS1": cbor({**RS256, 3: -65535}),
    "too long": cbor({**RS256, -1: bytes(2048)}),
}


@pytest.mark.parametrize("cose", BAD_KEYS.values(), ids=BAD_KEYS)
def test_a_passkey_key_in_another_shape_is_refused(cose: bytes) -> None:
    with pytest.raises(InvalidKeyError):
        read_passkey(cose)


def test_a_passkey_key_is_bytes() -> None:
    with pytest.raises(InvalidKeyError):
        read_passkey("key")  # type: ignore[arg-type]


def test_an_rsa_key_of_a_passkey_has_up_to_8192_bits() -> None:
    assert read_passkey(cbor({**RS256, -1: b"\xff" * 1024})).alg == "RS256"
    with pytest.raises(InvalidKeyError):
        read_passkey(cbor({**RS256, -1: b"\x01" + b"\xff" * 1024}))


@pytest.mark.parametrize("alg", PASSKEYS)
def test_a_signature_over_something_else_or_in_another_form_is_refused(alg: str) -> None:
    passkey = PASSKEYS[alg]
    key, signature = read_passkey(passkey.cose), passkey.sign_raw(b"message")
    key.verify(b"message", signature)
    flipped = signature[:-1] + bytes([signature[-1] ^ 1])
    for message, bad in (
        (b"messagE", signature),
        (b"message", flipped),
        (b"message", signature + b"\x00"),
        (b"message", signature[:-1]),
        (b"message", b""),
        (b"message", bytes(64)),
        (b"message", b"\x30\x06\x02\x01\x00\x02\x01\x00"),
        (b"message", b"\x30\x06\x02\x01\xff\x02\x01\x01"),
    ):
        with pytest.raises(InvalidSignatureError):
            key.verify(message, bad)
