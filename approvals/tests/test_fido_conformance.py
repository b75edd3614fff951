"""Malformed passkey responses over HTTP, after the FIDO server conformance tests.

Sign-in, approval and registration answer them with 400, never with 500.
"""

import json
import os
from collections.abc import Callable
from copy import deepcopy
from datetime import datetime
from typing import Any

import cbor2
import pytest

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from approvals.models import Passkey
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.authenticator import AT, BE, BS, UP, UV, Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from audit.models import Event
from registry.models import Grant
from registry.tests.cast import TESTER, assert_refused

pytestmark = pytest.mark.django_db
Json = dict[str, Any]
GONE: Any = ...
# Missing, of another type, empty, and invalid base64url.
SHAPES: dict[str, Any] = {
    "missing": GONE,
    "null": None,
    "number": 7,
    "list": ["AA"],
    "object": {"a": 1},
    "empty": "",
    "padded": "AAAA==",
    "base64": "a+b/cd",
    "not ASCII": "ключ",
}
OUTER: dict[str, Any] = SHAPES | {"another text": "public_key"}


def changed(credential: Json, member: str, value: Any) -> Json:
    """The response with one member (inside `response.`) replaced or removed."""
    copy = deepcopy(credential)
    *inside, name = member.split(".")
    place = copy["response"] if inside else copy
    if value is GONE:
        del place[name]
    else:
        place[name] = value
    return copy


def sign_in(alice: Person, grant: Grant) -> tuple[str, Json]:
    alice.client = browser()
    return "/sign-in/finish", alice.post("/sign-in/options").json()["publicKey"]


def approve(alice: Person, grant: Grant) -> tuple[str, Json]:
    return f"/approvals/{grant.pk}/decide", alice.statement(grant).json()["publicKey"]


@pytest.fixture(autouse=True)
def _each_refusal_is_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test causes more refusals than an outsider may have recorded in a minute."""
    monkeypatch.setattr("audit.log.refusal_counts.RECORDED_PER_MINUTE", 1000)


CEREMONIES = {"sign-in": sign_in, "approval": approve}
Ceremony = Callable[[Person, Grant], tuple[str, Json]]


def sample_cases(ceremony: Ceremony, cases: dict[str, Any]) -> dict[str, Any]:
    """All cases for the sign-in; every fourth for the approval, which has the same parser."""
    return dict(list(cases.items())[:: 4 if ceremony is approve else 1])


@pytest.fixture(params=list(CEREMONIES.values()), ids=list(CEREMONIES))
def ceremony(request: pytest.FixtureRequest) -> Ceremony:
    found: Ceremony = request.param
    return found


def assert_refused_without_effect(
    alice: Person, path: str, credential: object, what: str = ""
) -> None:
    before, signs = Event.objects.count(), Passkey.objects.get().sign_count
    answer = alice.post(path, {"credential": credential})
    assert answer.status_code == 400, f"{what}: {answer.content}"
    assert_refused(answer, 400, "invalid_assertion")
    assert Event.objects.count() == before + 1
    assert Passkey.objects.get().sign_count == signs
    assert {grant.status for grant in Grant.objects.all()} == {"pending"}


def test_WR_2_malformed_response_member_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    for member in ("clientDataJSON", "authenticatorData", "signature", "userHandle"):
        for shape, value in sample_cases(ceremony, SHAPES).items():
            path, options = ceremony(alice, reading)
            if member == "userHandle" and value is GONE and ceremony is approve:
                # The approval named the passkey, so it needs no user handle; a sign-in finds its
                # user by it.
                continue
            credential = changed(alice.device.assertion(options), f"response.{member}", value)
            assert_refused_without_effect(alice, path, credential, f"{member} {shape}")


def test_WR_2_malformed_credential_member_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    for member in ("id", "rawId", "type", "response"):
        for shape, value in sample_cases(ceremony, OUTER).items():
            path, options = ceremony(alice, reading)
            credential = changed(alice.device.assertion(options), member, value)
            assert_refused_without_effect(alice, path, credential, f"{member} {shape}")


def test_WR_2_body_that_is_not_a_webauthn_answer_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    wholes: list[object] = [None, True, 7, "text", [], {}, [{}]]
    for whole in wholes:
        path, _options = ceremony(alice, reading)
        assert_refused_without_effect(alice, path, whole, str(whole))


CLIENT_DATA: dict[str, Json] = {
    "type missing": {"type": GONE},
    "type no text": {"type": 7},
    "type empty": {"type": ""},
    "type of a creation": {"kind": "webauthn.create"},
    "challenge missing": {"challenge": GONE},
    "challenge no text": {"challenge": 7},
    "challenge empty": {"challenge": ""},
    "challenge no base64url": {"challenge": "a+b/=="},
    "challenge of another": {"challenge": b64u_encode(os.urandom(32))},
    "origin missing": {"origin": GONE},
    "origin no text": {"origin": [ORIGIN]},
    "origin empty": {"origin": ""},
    "origin of another": {"origin": "https://approve-registry.example.evil"},
    "tokenBinding no object": {"tokenBinding": "supported"},
    "tokenBinding without status": {"tokenBinding": {}},
    "tokenBinding status unknown": {"tokenBinding": {"status": "maybe"}},
    "tokenBinding present": {"tokenBinding": {"status": "present", "id": "AAAA"}},
    "no JSON": {"client_bytes": b"{"},
    "no object": {"client_bytes": b"[]"},
    "a member twice": {"client_bytes": b'{"type":"webauthn.get","type":"webauthn.get"}'},
}


def test_WR_3_client_data_that_is_not_what_was_asked_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    for what, change in sample_cases(ceremony, CLIENT_DATA).items():
        path, options = ceremony(alice, reading)
        assert_refused_without_effect(alice, path, alice.device.assertion(options, **change), what)


AUTHENTICATOR: dict[str, Json] = {
    "leftover bytes": {"tail": b"\x00"},
    "rpIdHash of another": {"rp_id": "approve-registry.example.evil"},
    "person present and not verified": {"flags": UP},
    "person not present": {"flags": UV},
    "cut short": {"flags": UP | UV | AT},
    "signature of nothing": {"signature": bytes(70)},
}


def test_WR_4_authenticator_data_that_breaks_a_rule_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    for what, change in AUTHENTICATOR.items():
        path, options = ceremony(alice, reading)
        assert_refused_without_effect(alice, path, alice.device.assertion(options, **change), what)


def test_WR_4_a_signature_over_another_hash_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    path, options = ceremony(alice, reading)
    other = alice.device.assertion(options, extraData="x")
    credential = alice.device.assertion(options)
    credential["response"]["clientDataJSON"] = other["response"]["clientDataJSON"]
    assert_refused_without_effect(alice, path, credential)


def test_WR_4_a_counter_that_does_not_rise_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    path, options = ceremony(alice, reading)
    alice.device.sign_count = Passkey.objects.get().sign_count - 1
    assert_refused_without_effect(alice, path, alice.device.assertion(options))


def test_AP_32_what_a_phishing_site_collects_signs_nothing(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    """A live proxy forwards our challenge, but the browser binds the response to its origin."""
    path, options = ceremony(alice, reading)
    evil = "approve-registry.example.evil"
    alice.device.rp_id, alice.device.origin = evil, f"https://{evil}"
    assert_refused_without_effect(alice, path, alice.device.assertion(options))


def attestation(**changes: Any) -> Callable[[Json], Json]:
    """A registration with members of its attestation object replaced."""

    def change(credential: Json) -> Json:
        document = cbor2.loads(b64u_decode(credential["response"]["attestationObject"])) | changes
        document = {name: value for name, value in document.items() if value is not GONE}
        return changed(credential, "response.attestationObject", b64u_encode(cbor2.dumps(document)))

    return change


CREATIONS: dict[str, Callable[[Json], Json]] = {
    f"{member} {shape}": lambda credential, m=member, v=value: changed(credential, m, v)
    for member in (
        "id",
        "rawId",
        "type",
        "response",
        "response.clientDataJSON",
        "response.attestationObject",
    )
    for shape, value in SHAPES.items()
} | {
    "fmt missing": attestation(fmt=GONE),
    "fmt no text": attestation(fmt=7),
    "fmt unknown": attestation(fmt="made-up"),
    "authData missing": attestation(authData=GONE),
    "authData no bytes": attestation(authData="text"),
    "authData empty": attestation(authData=b""),
    "attStmt missing": attestation(attStmt=GONE),
    "attStmt of another format": attestation(fmt="packed", attStmt={"alg": -7, "sig": b"x"}),
    "attStmt no map": attestation(fmt="packed", attStmt=[1]),
    "attStmt full for none": attestation(attStmt={"sig": b"x"}),
}


def test_WR_2_a_creation_of_another_shape_is_400(keys: None, now: datetime) -> None:
    link = create_setup_link(email="new@example.org", actor=TESTER, now=now)
    path, person = link.url.removeprefix(ORIGIN), Person(client=browser(), device=Authenticator())
    for what, change in CREATIONS.items():
        options = person.post(f"{path}options", {"name": "New"}).json()["publicKey"]
        answer = person.post(
            f"{path}finish", {"credential": change(person.device.registration(options))}
        )
        assert answer.status_code == 400, what
        assert_refused(answer, 400, "invalid_assertion")
        # The challenge is spent: the right response comes too late.
        right = person.device.registration(options)
        assert_refused(
            person.post(f"{path}finish", {"credential": right}), 400, "invalid_assertion"
        )
    assert not Passkey.objects.exists()


def test_WR_13_another_backup_eligibility_than_at_registration_is_400(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    assert Passkey.objects.get().backup_eligible is False
    for flags in (UP | UV | BE, UP | UV | BE | BS):
        path, options = ceremony(alice, reading)
        assert_refused_without_effect(alice, path, alice.device.assertion(options, flags=flags))
    assert (Passkey.objects.get().backup_eligible, Passkey.objects.get().backed_up) == (
        False,
        False,
    )


def test_WR_13_whether_it_is_synced_may_change_and_is_kept(keys: None, now: datetime) -> None:
    link = create_setup_link(email="new@example.org", actor=TESTER, now=now)
    path, person = link.url.removeprefix(ORIGIN), Person()
    options = person.post(f"{path}options", {"name": "New"}).json()["publicKey"]
    credential = person.device.registration(options, flags=UP | UV | AT | BE)
    assert person.post(f"{path}finish", {"credential": credential}).status_code == 200
    for synced in (True, False):
        options = person.post("/sign-in/options").json()["publicKey"]
        flags = UP | UV | BE | (BS if synced else 0)
        answer = person.post(
            "/sign-in/finish", {"credential": person.device.assertion(options, flags=flags)}
        )
        assert answer.status_code == 200
        kept = Passkey.objects.get()
        assert (kept.backup_eligible, kept.backed_up) == (True, synced)
    options = person.post("/sign-in/options").json()["publicKey"]
    assert_refused(
        person.post("/sign-in/finish", {"credential": person.device.assertion(options)}),
        400,
        "invalid_assertion",
    )


@pytest.mark.parametrize("synced", [False, True])
def test_WR_13_an_older_passkey_says_it_at_its_next_signature(
    alice: Person, reading: Grant, synced: bool
) -> None:
    """Where release 1 recorded that it is synced, the flag is known already."""
    Passkey.objects.update(backup_eligible=None, backed_up=synced)
    path, options = sign_in(alice, reading)
    answer = alice.post(path, {"credential": alice.device.assertion(options)})
    assert answer.status_code == (400 if synced else 200)
    path, options = sign_in(alice, reading)
    credential = alice.device.assertion(options, flags=UP | UV | BE)
    assert alice.post(path, {"credential": credential}).status_code == (200 if synced else 400)
    assert Passkey.objects.get().backup_eligible is synced


RS1 = {1: 3, 3: -65535, -1: b"\xff" * 256, -2: b"\x01\x00\x01"}
ES512 = {1: 2, 3: -36, -1: 3, -2: bytes(66), -3: bytes(66)}


@pytest.mark.parametrize("cose", [RS1, ES512], ids=["RS1", "ES512"])
def test_WR_10_algorithm_that_was_not_offered_is_400(
    keys: None, now: datetime, cose: dict[int, Any]
) -> None:
    link = create_setup_link(email="new@example.org", actor=TESTER, now=now)
    path, person = link.url.removeprefix(ORIGIN), Person()
    options = person.post(f"{path}options", {"name": "New"}).json()["publicKey"]
    assert {each["alg"] for each in options["pubKeyCredParams"]} == {-7, -8, -257}
    credential = person.device.registration(options, cose=cose)
    assert_refused(
        person.post(f"{path}finish", {"credential": credential}), 400, "invalid_assertion"
    )
    assert not Passkey.objects.exists()


def test_valid_response_is_accepted_at_each_ceremony(
    alice: Person, reading: Grant, ceremony: Ceremony
) -> None:
    """Without this the refusals above would prove nothing."""
    path, options = ceremony(alice, reading)
    answer = alice.post(path, {"credential": alice.device.assertion(options)})
    assert answer.status_code == 200, json.loads(answer.content)
