"""A human who lost every passkey comes back by an admin's link; what stood on the old ones ends."""

import json
from datetime import datetime, timedelta
from io import StringIO

import pytest
from django.core.management import CommandError, call_command

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Challenge, Passkey, SetupCode
from approvals.services.people import SetupLink
from approvals.services.recovery import create_recovery_link
from approvals.tests.authenticator import Authenticator
from approvals.tests.cast import ORIGIN, Person, browser
from audit.models import Event
from registry.models import Grant, Human
from registry.services.enrolment import create_enrolment_code
from registry.services.grants import suspend_grant
from registry.services.people import suspend_human
from registry.tests.cast import TESTER, AgentClient, issue, refused

pytestmark = pytest.mark.django_db


def link_for(person: Person, now: datetime) -> SetupLink:
    return create_recovery_link(human=person.human, actor=TESTER, now=now)


def recovered(link: SetupLink, device: Authenticator | None = None) -> Person:
    """Somebody at a new browser opens the link and makes a passkey."""
    person = Person(client=browser(), device=device or Authenticator())
    done = person.set_up(link.url, name="", email="")
    assert done.status_code == 200, done.content
    return person


def test_a_recovery_link_makes_one_new_passkey_in_the_place_of_all(alice: Person, now: datetime) -> None:
    human = alice.human
    second = Authenticator()
    options = alice.ask_passkey().json()["publicKey"]
    alice.post("/settings/passkeys/finish", {"credential": second.registration(options)})
    page = browser().get((link := link_for(alice, now)).url.removeprefix(ORIGIN)).content.decode()
    assert "Make a new passkey" in page
    assert 'name="email"' not in page
    anew = recovered(link)
    assert anew.human == human
    assert bytes(Passkey.objects.get(human=human).credential_id) == anew.device.credential_id
    assert anew.get("/approvals/").status_code == 200
    for device in (alice.device, second):
        stranger = Person(client=browser(), device=device)
        refused(stranger.sign_in(), 400, "invalid_assertion")
    told = Event.objects.filter(human_id=human.pk, reason="recovery")
    assert [event.kind for event in told] == ["approvals.passkey.removed"] * 2
    assert Event.objects.get(kind="approvals.human.recovered").data == {"passkeys_removed": 2}


def test_the_device_with_an_old_passkey_can_hold_the_new_one(alice: Person, now: datetime) -> None:
    path = link_for(alice, now).url.removeprefix(ORIGIN)
    options = browser().post(f"{path}options", "{}", content_type="application/json").json()["publicKey"]
    assert options["excludeCredentials"] == []
    assert options["user"]["name"] == "alice@example.org"


def test_making_the_link_ends_sessions_codes_and_grants_at_once(
    alice: Person, agent: AgentClient, reading: Grant, paying: Grant, now: datetime
) -> None:
    alice.approve(reading)
    alice.approve(paying)
    for grant in (reading, paying):
        grant.refresh_from_db()
    assert issue(agent, reading).status_code == 201
    # One the human suspended: resuming it by hand is no way around the signature.
    suspend_grant(grant=paying, actor=TESTER, now=now)
    _, code = create_enrolment_code(human=alice.human, actor=TESTER, now=now)
    versions = {grant.pk: grant.version for grant in Grant.objects.all()}
    link_for(alice, now)
    for grant in Grant.objects.all():
        assert (grant.status, grant.suspension_cause) == ("suspended", "recovery")
        assert grant.version == versions[grant.pk] + 1
        told = Event.objects.filter(kind="registry.grant.suspended", grant_id=grant.pk)
        assert told.filter(reason="recovery").count() == 1
    assert alice.get("/approvals/").status_code == 302
    refused(issue(agent, reading), 400, "invalid_grant")
    refused(AgentClient().register(code), 400, "invalid_enrolment_code")


def test_what_was_suspended_returns_by_a_signature_with_the_new_passkey(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    alice.approve(reading)
    anew = recovered(link_for(alice, now))
    assert anew.get("/approvals/").content.decode().count(f"/approvals/{reading.pk}/") >= 1
    refused(issue(agent, reading), 400, "invalid_grant")
    assert anew.approve(reading).status_code == 200
    assert issue(agent, reading).status_code == 201


def test_while_the_link_is_open_no_old_passkey_opens_or_signs_anything(
    alice: Person, bob: Person, now: datetime
) -> None:
    """It may be in a thief's hands: the suspension would be undone by the very key it is for."""
    link = link_for(alice, now)
    alice.client = browser()
    refused(alice.sign_in(), 400, "invalid_assertion")
    assert bob.sign_in().status_code == 200
    # Unused, it ends by itself, and everything is as before but for the grants.
    SetupCode.objects.filter(kind="recovery").update(expires_at=now - timedelta(seconds=1))
    assert alice.sign_in().status_code == 200
    assert browser().get(link.url.removeprefix(ORIGIN)).status_code == 410


def test_a_recovery_link_works_once_for_fifteen_minutes_and_the_newest_alone(
    alice: Person, now: datetime
) -> None:
    first, second = link_for(alice, now), link_for(alice, now)
    assert second.expires_at == now + timedelta(minutes=15)
    assert browser().get(first.url.removeprefix(ORIGIN)).status_code == 410
    path = second.url.removeprefix(ORIGIN)
    for _ in range(2):
        assert browser().get(path).status_code == 200
    assert SetupCode.objects.get(kind="recovery", expires_at__gt=now).used_at is None
    late = Person(client=browser())
    options = late.post(f"{path}options").json()["publicKey"]
    recovered(second)
    answer = late.post(f"{path}finish", {"credential": late.device.registration(options)})
    refused(answer, 410, "expired")
    assert Passkey.objects.count() == 1


@pytest.mark.parametrize("trouble", ["elsewhere", "wrong", "never asked"])
def test_a_recovery_takes_the_right_answer_of_the_right_session(
    alice: Person, now: datetime, trouble: str
) -> None:
    path = link_for(alice, now).url.removeprefix(ORIGIN)
    person = Person(client=browser())
    options = person.post(f"{path}options").json()["publicKey"]
    credential = person.device.registration(options, crossOrigin=trouble == "wrong")
    if trouble == "elsewhere":
        person.client = browser()
    elif trouble == "never asked":
        Challenge.objects.all().delete()
    refused(person.post(f"{path}finish", {"credential": credential}), 400, "invalid_assertion")
    assert bytes(Passkey.objects.get().credential_id) == alice.device.credential_id
    assert SetupCode.objects.get(kind="recovery").used_at is None


def test_a_suspended_human_is_not_recovered(alice: Person, now: datetime) -> None:
    human = alice.human
    link = link_for(alice, now)
    suspend_human(human=human, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        create_recovery_link(human=human, actor=TESTER, now=now)
    refused(Person(client=browser()).post(f"{link.url.removeprefix(ORIGIN)}options"), 409, "invalid_state")


def test_the_human_is_told_on_their_pages(alice: Person, now: datetime) -> None:
    assert "recover" not in alice.get("/settings/").content.decode()
    anew = recovered(link_for(alice, now))
    for path in ("/approvals/", "/settings/"):
        assert "Your account was recovered on" in anew.get(path).content.decode()
    assert "A recovery link was made for this account" in anew.get("/activity/").content.decode()
    SetupCode.objects.update(created_at=now - timedelta(days=15))
    assert "was recovered" not in anew.get("/settings/").content.decode()


def test_a_link_that_nobody_used_is_told_too(alice: Person, now: datetime) -> None:
    link_for(alice, now - timedelta(minutes=16))
    alice.sign_in()
    assert "it was not used" in alice.get("/approvals/").content.decode()


def test_the_command_prints_the_link(alice: Person, now: datetime) -> None:
    out = StringIO()
    call_command("setup_link", "--recover", "ALICE@example.org", "--json", stdout=out)
    link = json.loads(out.getvalue())
    assert set(link) == {"url", "expires_at"}
    assert recovered(SetupLink(link["url"], now)).human.name == "Alice"
    event = Event.objects.get(kind="approvals.setup_code.created", data__kind="recovery")
    assert event.actor_kind == "system"


@pytest.mark.parametrize(
    "arguments",
    [("nobody@example.org",), ("alice@example.org", "--admin"), ("alice@example.org", "--email", "x@y.z")],
)
def test_the_command_recovers_nobody_it_should_not(alice: Person, arguments: tuple[str, ...]) -> None:
    with pytest.raises(CommandError):
        call_command("setup_link", "--recover", *arguments, stdout=StringIO())
    assert not SetupCode.objects.filter(kind="recovery").exists()


def test_WR_7_an_admin_makes_the_link_with_a_signature_and_sees_it_once(admin: Person, alice: Person) -> None:
    body = {"human": str(alice.human.pk)}
    refused(admin.client.post("/admin/recovery-link/", body), 401, "verification_required")
    assert not SetupCode.objects.filter(kind="recovery").exists()
    page = admin.press("/admin/recovery-link/", body).content.decode()
    assert "http://localhost:8000/setup/" in page
    assert "/setup/" not in admin.get("/admin/recovery-link/").content.decode()
    made = Event.objects.get(kind="approvals.setup_code.created", data__kind="recovery")
    assert (made.actor_id, made.human_id) == (str(admin.human.pk), Human.objects.get(name="Alice").pk)
