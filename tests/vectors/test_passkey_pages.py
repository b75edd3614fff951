"""The W3C's example ceremonies posted to the pages: registration by setup link, assertion at "I'm
here".
"""

from datetime import datetime
from typing import Any

import cbor2
import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import b64u_encode
from approvals.models import Passkey
from approvals.passkeys import FORMATS
from approvals.services import challenges
from approvals.services.setup_and_sign_in import create_setup_link
from approvals.tests.cast import ORIGIN, Person, browser
from kms.tests.sealing import create
from registry.models import Human
from registry.tests.cast import TESTER, assert_refused

from .shared import b, load
from .test_passkey_vectors import ALGORITHMS, stored_key, why_refused

pytestmark = [pytest.mark.vectors, pytest.mark.django_db]
# The W3C examples we accept: one of three algorithms, user verified, not embedded, and an
# attestation format among the two simplest.
REGISTERED = {"packed-self-es256", "packed-es256", "packed-rs256"}
SIGNED = {"none-es256-long-credential-id", "packed-es256", "tpm-es256"}


def vectors() -> list[dict[str, Any]]:
    return [
        vector for vector in load("webauthn_l3_vectors")["vectors"] if "authentication" in vector
    ]


def name_of(vector: dict[str, Any]) -> str:
    return str(vector["anchor"]).removeprefix("sctn-test-vectors-")


@pytest.fixture
def example_org(settings: Settings) -> Client:
    """The pages as if served from the examples' site."""
    doc = load("webauthn_l3_vectors")
    settings.RP_ID, settings.ORIGIN = doc["rp_id"], doc["origin"]
    return browser(Origin=doc["origin"])


def posted(ceremony: dict[str, str], registration: dict[str, str], *names: str) -> dict[str, Any]:
    identifier = b64u_encode(b(registration["credential_id"]))
    response = {name: b64u_encode(b(ceremony[name])) for name in names}
    return {"id": identifier, "rawId": identifier, "type": "public-key", "response": response}


def may_register(registration: dict[str, str]) -> bool:
    """Read from the ceremony itself, not by our code."""
    document = cbor2.loads(b(registration["attestationObject"]))
    embedded = b'"crossOrigin":true' in b(registration["clientDataJSON"])
    verified = bool(document["authData"][32] & 0x04)
    known = cbor2.loads(stored_key(registration))[3] in ALGORITHMS
    return verified and known and not embedded and document["fmt"] in FORMATS


def test_WR_1_registrations_at_a_setup_link(
    example_org: Client, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    registered, allowed = set(), set()
    for number, vector in enumerate(vectors()):
        person, registration = Person(client=example_org), vector["registration"]
        monkeypatch.setattr(
            challenges, "new_challenge", lambda made=registration: b(made["challenge"])
        )
        link = create_setup_link(email=f"w{number}@example.org", actor=TESTER, now=now)
        path = link.url.removeprefix(ORIGIN)
        assert person.post(f"{path}options", {"name": "W"}).status_code == 200
        credential = posted(registration, registration, "clientDataJSON", "attestationObject")
        answer = person.post(f"{path}finish", {"credential": credential})
        if may_register(registration):
            allowed.add(name_of(vector))
        if answer.status_code == 200:
            registered.add(name_of(vector))
            assert person.client.post("/sign-out/").status_code == 302
        else:
            assert_refused(answer, 400, "invalid_assertion")
    assert registered == allowed == REGISTERED
    assert Passkey.objects.count() == Human.objects.count() == len(REGISTERED)


def test_WR_1_assertions_at_the_switch(
    example_org: Client, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed, allowed = set(), set()
    for vector in vectors():
        registration, answer = vector["registration"], vector["authentication"]
        human = Human.objects.create(
            email=f"{name_of(vector)}@example.org", name="W", created_at=now
        )
        create(
            Passkey,
            human=human,
            credential_id=b(registration["credential_id"]),
            public_key=stored_key(registration),
            user_handle=b"w",
            sign_count=0,
            name="W",
            created_at=now,
        )
        person = Person(client=browser(Origin=load("webauthn_l3_vectors")["origin"]))
        person.client.force_login(human)
        monkeypatch.setattr(challenges, "new_challenge", lambda made=answer: b(made["challenge"]))
        assert person.post("/presence/options").status_code == 200
        credential = posted(
            answer, registration, "clientDataJSON", "authenticatorData", "signature"
        )
        begun = person.post("/presence/begin", {"credential": credential})
        if why_refused(vector) is None:
            allowed.add(name_of(vector))
        if begun.status_code == 200:
            signed.add(name_of(vector))
        else:
            assert_refused(begun, 400, "invalid_assertion")
    assert signed == allowed == SIGNED
