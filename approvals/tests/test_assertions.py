"""Passkey assertions: cases WA and AP-18, made with a real key and broken one rule at a time."""

import os
from typing import Any

import cbor2
import pytest

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidAssertionError
from agentauth.protocol.tests.mixed_order import MixedSigner
from approvals.passkeys import (
    VerifiedAssertion,
    VerifiedRegistration,
    request_options,
    verify_assertion,
    verify_registration,
)
from approvals.tests.authenticator import AT, BE, BS, ED, UP, UV, Authenticator

RP_ID, ORIGIN = "localhost", "http://localhost:8000"
CHALLENGE = os.urandom(32)
OPTIONS = {"challenge": b64u_encode(CHALLENGE), "user": {"id": b64u_encode(b"alice-handle")}}


@pytest.fixture
def device() -> Authenticator:
    return Authenticator(user_handle=b"alice-handle", sign_count=6)


def check(device: Authenticator, credential: object, **changes: Any) -> VerifiedAssertion:
    expected: dict[str, Any] = {
        "expected_challenge": CHALLENGE,
        "rp_id": RP_ID,
        "origin": ORIGIN,
        "public_key": device.public_key,
        "sign_count": 6,
        "expected_credential_id": device.credential_id,
        "expected_user_handle": b"alice-handle",
        "expected_backup_eligible": None,
    }
    return verify_assertion(credential=credential, **(expected | changes))


def register(credential: object) -> VerifiedRegistration:
    return verify_registration(
        credential=credential, expected_challenge=CHALLENGE, rp_id=RP_ID, origin=ORIGIN
    )


@pytest.mark.parametrize("alg", [-7, -8, -257])
def test_WA_OK_1_a_valid_assertion_of_each_algorithm_is_accepted(alg: int) -> None:
    device = Authenticator(alg=alg, user_handle=b"alice-handle", sign_count=6)
    assert check(device, device.assertion(OPTIONS)).sign_count == 7


def test_WA_OK_2_a_counter_that_stays_zero_is_accepted() -> None:
    device = Authenticator(user_handle=b"alice-handle", counts=False)
    assert check(device, device.assertion(OPTIONS), sign_count=0).sign_count == 0


def test_WA_OK_3_an_extra_client_data_member_is_ignored(device: Authenticator) -> None:
    assert check(device, device.assertion(OPTIONS, extraData="x"))


def test_extensions_that_are_one_whole_map_are_accepted(device: Authenticator) -> None:
    assert check(device, device.assertion(OPTIONS, flags=UP | UV | ED, tail=cbor2.dumps({"a": 1})))


REFUSED: dict[str, dict[str, Any]] = {
    "WA-1": {"flags": UP},
    "WA-2": {"flags": UV},
    "WA-3": {"flags": UP | UV | BS},
    "WA-4": {"kind": "webauthn.create"},
    "WA-5": {"kind": "payment.get"},
    "WA-6": {"challenge": b64u_encode(os.urandom(32))},
    "WA-7": {"challenge": ...},
    "WA-12": {"origin": "https://evil.example"},
    "WA-13": {"origin": "http://sub.localhost:8000"},
    "WA-14": {"origin": "https://localhost:8000"},
    "WA-17 AP-18": {"crossOrigin": True},
    "AP-18 not a boolean": {"crossOrigin": 0},
    "AP-18 topOrigin": {"topOrigin": ORIGIN},
    "AP-18 empty topOrigin": {"topOrigin": None},
    "WA-19": {"rp_id": "other.example"},
    "WA-26": {"signature": b""},
    "WA-28": {"tail": b"\x00"},
    "WA-28 after extensions": {"flags": UP | UV | ED, "tail": cbor2.dumps({}) + b"\x00"},
    "WA-28 extensions that grow when encoded again": {
        "flags": UP | UV | ED,
        "tail": b"\xa1\x61a\xf9\x3c\x00\x00",
    },
    "WA-28 extension flag alone": {"flags": UP | UV | ED},
    "extensions that are no map": {"flags": UP | UV | ED, "tail": b"\x01"},
    "attested data in an assertion": {"flags": UP | UV | AT},
    "padded challenge": {"challenge": b64u_encode(CHALLENGE) + "="},
    "token binding": {"tokenBinding": {"status": "present", "id": "x"}},
    "not JSON": {"client_bytes": b"\xef\xbb\xbf{}"},
    "random signature": {"signature": os.urandom(70)},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_WA_a_broken_assertion_is_refused(device: Authenticator, change: dict[str, Any]) -> None:
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS, **change))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"flags": UP}, "person not present and verified"),
        ({"flags": UV}, "person not present and verified"),
        ({"kind": "webauthn.create"}, "client data type"),
    ],
)
def test_WA_what_the_library_refuses_too_is_refused_before_it(
    device: Authenticator, change: dict[str, Any], why: str
) -> None:
    with pytest.raises(InvalidAssertionError, match=why):
        check(device, device.assertion(OPTIONS, **change))


def test_WA_a_ceremony_lasts_five_minutes() -> None:
    assert request_options(rp_id=RP_ID, challenge=CHALLENGE)["timeout"] == 300_000


def test_WA_20_signature_counter_that_does_not_increase_is_refused(device: Authenticator) -> None:
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS), sign_count=7)


def test_WA_21_a_counter_that_falls_is_refused(device: Authenticator) -> None:
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS), sign_count=9)


def test_WA_23_another_authenticator_cannot_sign_for_this_credential(device: Authenticator) -> None:
    other = Authenticator(
        credential_id=device.credential_id, user_handle=b"alice-handle", sign_count=6
    )
    with pytest.raises(InvalidAssertionError):
        check(device, other.assertion(OPTIONS))


def test_WA_24_another_persons_credential_is_refused(device: Authenticator) -> None:
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS), expected_credential_id=os.urandom(32))
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS), expected_user_handle=b"bob-handle")


@pytest.mark.parametrize("flags", [UP | UV, UP | UV | BE, UP | UV | BE | BS])
def test_WR_13_backup_eligibility_is_as_at_registration(device: Authenticator, flags: int) -> None:
    eligible = bool(flags & BE)
    for known in (eligible, None):
        found = check(
            device, device.assertion(OPTIONS, flags=flags), expected_backup_eligible=known
        )
        assert (found.backup_eligible, found.backed_up) == (eligible, bool(flags & BS))
    with pytest.raises(InvalidAssertionError, match="backup flags changed"):
        check(device, device.assertion(OPTIONS, flags=flags), expected_backup_eligible=not eligible)
    made = register(Authenticator().registration(OPTIONS, flags=flags | AT))
    assert (made.backup_eligible, made.backed_up) == (eligible, bool(flags & BS))


@pytest.mark.parametrize("name", ["clientDataJSON", "authenticatorData", "signature", "userHandle"])
@pytest.mark.parametrize("value", [None, "", 5, [], {}, "a+b/", "AA=", "AB", "A" * 20_000, "é"])
def test_WR_2_members_of_another_shape_are_refused(
    device: Authenticator, name: str, value: Any
) -> None:
    credential = device.assertion(OPTIONS)
    credential["response"][name] = value
    if (name, value) == ("userHandle", None):
        # the ceremony named the credential, and the response claims no other user
        assert check(device, credential)
        return
    with pytest.raises(InvalidAssertionError):
        check(device, credential)


@pytest.mark.parametrize("path", [("id",), ("rawId",), ("type",), ("response",)])
@pytest.mark.parametrize("value", [None, "", 5, [], {}, "x y", "public_key"])
def test_WR_2_outer_members_of_another_shape_are_refused(
    device: Authenticator, path: tuple[str], value: Any
) -> None:
    with pytest.raises(InvalidAssertionError):
        check(device, device.assertion(OPTIONS) | {path[0]: value})
    wholes: list[object] = [None, [], "text", 7]
    for whole in wholes:
        with pytest.raises(InvalidAssertionError):
            check(device, whole)


@pytest.mark.parametrize("alg", [-7, -8, -257])
def test_a_registration_of_each_algorithm_is_accepted(alg: int) -> None:
    device = Authenticator(alg=alg)
    made = register(device.registration(OPTIONS))
    assert (made.credential_id, made.public_key) == (device.credential_id, device.public_key)
    assert made.transports == ("internal",)


ES512 = {1: 2, 3: -36, -1: 3, -2: bytes(66), -3: bytes(66)}
SMALL_ORDER = {1: 1, 3: -8, -1: 6, -2: b"\x01" + bytes(31)}
OFF_CURVE = {1: 2, 3: -7, -1: 1, -2: b"\x01" * 32, -3: b"\x02" * 32}
SHORT_RSA = {1: 3, 3: -257, -1: b"\xff" * 128, -2: b"\x01\x00\x01"}
# Keys the WebAuthn library accepts, but our own reader, which verifies receipts, does not.
ES256 = Authenticator().cose()
UNREADABLE = {
    "a label too many": ES256 | {2: b"key id"},
    "another curve's number": ES256 | {-1: 2},
    "longest RSA key and more": {1: 3, 3: -257, -1: b"\xff" * 1025, -2: b"\x01\x00\x01"},
}
BAD_REGISTRATIONS: dict[str, dict[str, Any]] = {
    "UV not set": {"flags": UP | AT},
    "UP not set": {"flags": UV | AT},
    "BS without BE": {"flags": UP | UV | AT | BS},
    "no key": {"flags": UP | UV | BE},
    "type webauthn.get": {"kind": "webauthn.get"},
    "other challenge": {"challenge": b64u_encode(os.urandom(32))},
    "crossOrigin": {"crossOrigin": True},
    "topOrigin": {"topOrigin": ORIGIN},
    "other origin": {"origin": "https://evil.example"},
    "WR-10 ES512": {"cose": ES512},
    "WR-10 RS1": {"cose": SHORT_RSA | {3: -65535}},
    "small-order key": {"cose": SMALL_ORDER},
    "JK-22 mixed-order key": {"cose": SMALL_ORDER | {-2: MixedSigner().raw}},
    "point off the curve": {"cose": OFF_CURVE},
    "short RSA key": {"cose": SHORT_RSA},
    "leftover in authenticator data": {"tail": b"\x00"},
    "leftover in attestation": {"attestation_tail": b"\x00"},
    "unwanted format": {"fmt": "fido-u2f"},
    "unknown format": {"fmt": ["none"]},
}


@pytest.mark.parametrize("change", BAD_REGISTRATIONS.values(), ids=BAD_REGISTRATIONS)
def test_a_broken_registration_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(InvalidAssertionError):
        register(Authenticator().registration(OPTIONS, **change))


def test_a_credential_id_has_an_end_and_is_the_attested_one() -> None:
    for length in (1, 1023):
        id_ = os.urandom(length)
        assert register(Authenticator(credential_id=id_).registration(OPTIONS)).credential_id == id_
    with pytest.raises(InvalidAssertionError):
        register(Authenticator(credential_id=os.urandom(1024)).registration(OPTIONS))
    other = b64u_encode(os.urandom(32))
    with pytest.raises(InvalidAssertionError, match="two ids"):
        register(Authenticator().registration(OPTIONS) | {"id": other, "rawId": other})


@pytest.mark.parametrize("cose", UNREADABLE.values(), ids=UNREADABLE)
def test_a_key_no_receipt_could_be_verified_with_is_refused(cose: dict[int, Any]) -> None:
    with pytest.raises(InvalidAssertionError, match="public key"):
        register(Authenticator().registration(OPTIONS, cose=cose))


@pytest.mark.parametrize(
    "value", [None, "", 5, "oA", b64u_encode(cbor2.dumps([])), b64u_encode(b"\xff" * 9)]
)
def test_WR_2_an_attestation_of_another_shape_is_refused(value: Any) -> None:
    credential = Authenticator().registration(OPTIONS)
    credential["response"]["attestationObject"] = value
    with pytest.raises(InvalidAssertionError):
        register(credential)
