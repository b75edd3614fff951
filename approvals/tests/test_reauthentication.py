"""Sensitive acts need a passkey signature made for them: a stolen session cookie is not enough."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest

from approvals.models import Challenge, Passkey, SetupCode
from approvals.tests.authenticator import UP, Authenticator
from approvals.tests.cast import Person, browser
from audit.models import Event
from registry.models import EnrolmentCode, ServiceProvider
from registry.tests.cast import assert_refused

pytestmark = pytest.mark.django_db
ADD = "/settings/passkeys/options"
CODE = "/settings/enrolment-codes"
ACTS = {
    CODE: {},
    "/admin/invite/": {"email": "new@example.org"},
    "/admin/new-service-provider/": {"name": "Beta", "audience": "http://127.0.0.1:8004"},
}


def made() -> list[int]:
    return [
        model._default_manager.count()
        for model in (Passkey, SetupCode, EnrolmentCode, ServiceProvider)
    ]


def test_WR_7_a_stolen_cookie_adds_no_passkey(alice: Person) -> None:
    """Not even in the minute of the sign-in, or while the owner is adding one."""
    thief = Person(client=browser())
    thief.client.cookies = alice.client.cookies
    assert_refused(thief.post(ADD), 401, "verification_required")
    options = alice.ask_passkey().json()["publicKey"]
    # The thief may ask too, but has no passkey of hers; only she received the creation challenge.
    asked = thief.post("/verify/options", {"act": ADD}).json()["publicKey"]
    guess = thief.device.assertion(asked)
    assert_refused(thief.post(ADD, {"verification": guess}), 400, "invalid_assertion")
    blind = thief.device.registration(options | {"challenge": asked["challenge"]})
    assert_refused(
        thief.post("/settings/passkeys/finish", {"credential": blind}), 400, "invalid_assertion"
    )
    assert Passkey.objects.count() == 1


def test_WR_7_without_a_signature_nothing_sensitive_happens(admin: Person) -> None:
    second = Authenticator()
    options = admin.ask_passkey().json()["publicKey"]
    admin.post("/settings/passkeys/finish", {"credential": second.registration(options)})
    last = Passkey.objects.latest("created_at")
    for path, fields in (ACTS | {f"/settings/passkeys/{last.pk}/remove": {}}).items():
        before = made()
        assert_refused(admin.client.post(path, fields), 401, "verification_required")
        assert made() == before
        assert admin.press(path, fields).status_code in {200, 302}
        assert made() != before


def test_WR_7_the_refusal_is_a_page_for_who_came_without_a_script(alice: Person) -> None:
    answer = alice.client.post(CODE, headers={"Accept": "text/html"})
    assert answer.status_code == 401
    assert "Confirm that it is you" in answer.content.decode()
    assert answer["WWW-Authenticate"].startswith("Passkey")


@pytest.mark.parametrize(
    "trouble",
    ["twice", "late", "other session", "other act", "other human", "unverified", "never asked"],
)
def test_WR_7_a_signature_is_for_one_act_once_in_time_in_its_session(
    alice: Person, bob: Person, now: datetime, trouble: str
) -> None:
    signed: Any = (
        alice.verification(CODE, flags=UP) if trouble == "unverified" else alice.verification(CODE)
    )
    path = CODE
    if trouble == "twice":
        assert alice.client.post(CODE, {"verification": json.dumps(signed)}).status_code == 200
    elif trouble == "late":
        Challenge.objects.update(expires_at=now - timedelta(seconds=1))
    elif trouble == "other session":
        alice.client = browser()
        alice.sign_in()
    elif trouble == "other act":
        path = f"/settings/passkeys/{Passkey.objects.get(human=alice.human).pk}/remove"
    elif trouble == "other human":
        signed = alice.device.assertion(
            bob.post("/verify/options", {"act": CODE}).json()["publicKey"]
        )
        alice = bob
    elif trouble == "never asked":
        Challenge.objects.all().delete()
    before = made()
    answer = alice.client.post(path, {"verification": json.dumps(signed)})
    assert_refused(answer, 400, "invalid_assertion")
    assert made() == before
    # The wrong try spent it, so the right act is refused too.
    if trouble == "other act":
        assert_refused(
            alice.client.post(CODE, {"verification": json.dumps(signed)}), 400, "invalid_assertion"
        )


@pytest.mark.parametrize("sent", ["x", "[]", "1", '{"type": "public-key"}', '{"a": 1, "a": 2}'])
def test_WR_7_verification_that_is_not_a_signature_is_refused(alice: Person, sent: str) -> None:
    alice.post("/verify/options", {"act": CODE})
    answer = alice.client.post(CODE, {"verification": sent})
    assert answer.status_code == 400
    assert not EnrolmentCode.objects.exists()


@pytest.mark.parametrize("act", ["", "settings", "https://evil.example/", "/" + "x" * 255, None, 1])
def test_only_a_path_can_be_signed_for(alice: Person, act: object) -> None:
    assert_refused(alice.post("/verify/options", {"act": act}), 400, "invalid_request")


def test_a_path_of_255_characters_can_be_signed_for(alice: Person) -> None:
    assert alice.post("/verify/options", {"act": "/" + "x" * 254}).status_code == 200


def test_a_question_replaces_the_one_before(alice: Person) -> None:
    for number in range(3):
        alice.post("/verify/options", {"act": f"/{number}"})
    assert Challenge.objects.filter(purpose="verification").count() == 1


def test_each_signature_for_an_act_is_an_event(alice: Person) -> None:
    alice.press(CODE)
    event = Event.objects.get(kind="approvals.human.verified")
    assert (event.actor_id, event.data) == (str(alice.human.pk), {"act": CODE})
