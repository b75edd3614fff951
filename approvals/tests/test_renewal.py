"""An owner renews a grant: asked on its page, signed as a request is, with a later end (ADR 51)."""

from datetime import datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.conf import settings
from django.utils import timezone

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import (
    GrantChangedError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
)
from approvals.models import Notification, NotificationChannel, Receipt
from approvals.notifications.delivery import send_notifications
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.services.routed_requests import tell_approvers
from approvals.tests.cast import Person, registered
from approvals.tests.notifying import by_mail, outbox
from audit import kinds
from audit.models import Event
from kms.services import verification_keys
from registry.models import Agent, Grant, Human, Renewal
from registry.services.agents import suspend_agent
from registry.services.approvers import add_member, create_group, create_rule
from registry.services.evidence_contradictions import find_contradictions
from registry.services.expiry import expire_everything
from registry.services.grant_renewal import request_renewal
from registry.services.grants import (
    approve_grant,
    expire_grant,
    latest_end,
    raise_version,
    revoke_grant,
    suspend_grant,
)
from registry.services.service_providers import suspend_service_provider
from registry.tests.cast import TESTER, AgentClient, assert_refused, issue
from verifier.models import GrantLedger

pytestmark = pytest.mark.django_db

BOTH = {"permission.0": "on", "permission.1": "on"}
DAY = timedelta(days=1)


@pytest.fixture
def granted(alice: Person, paying: Grant) -> Grant:
    """Asked for 30 days, approved for 4."""
    assert alice.approve(paying, **BOTH, days="4").status_code == 200
    return fresh(paying)


def fresh(grant: Grant) -> Grant:
    return Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)


def renew(person: Person, grant: Grant) -> Any:
    return person.client.post(f"/approvals/{grant.pk}/renew")


def asked(person: Person, grant: Grant) -> Grant:
    assert renew(person, grant).status_code == 302
    return grant


def text_of(grant: Grant) -> list[str]:
    newest = Receipt.objects.filter(subject=str(grant.pk)).latest("created_at")
    return newest.consent_text.splitlines()


def statement_of(grant: Grant, now: datetime) -> dict[str, Any]:
    newest = Receipt.objects.filter(subject=str(grant.pk)).latest("created_at")
    keys = verification_keys(purpose="receipt", now=now)
    checked = verify_receipt(newest.compact, keys=keys, expected_issuer=settings.ISSUER)
    return dict(checked.statement.body)


def signed_for(person: Person, grant: Grant) -> dict[str, Any]:
    """The options of a statement, with the second step taken."""
    drawn = person.ask(grant, "review").json()["drawn"]
    assert person.ask(grant, "second-step", drawn=drawn).status_code == 200
    return dict(person.statement(grant, drawn=drawn).json()["publicKey"])


def test_a_renewal_is_signed_and_its_receipt_says_both_ends(
    alice: Person, granted: Grant, agent: AgentClient, now: datetime
) -> None:
    old, terms = granted.valid_until, (granted.capabilities, granted.envelope)
    assert old is not None
    token = issue(agent, granted).json()
    answer = renew(alice, granted)
    assert (answer.status_code, answer["Location"]) == (302, f"/approvals/{granted.pk}/")
    page = alice.get(answer["Location"]).content.decode()
    assert "Renew the grant of agent" in page
    assert ">Deny</button>" not in page
    assert fresh(granted).valid_until == old
    done = alice.approve(granted)
    assert (done.status_code, done.json()["status"]) == (200, "Approved"), done.content
    after = fresh(granted)
    assert after.valid_until is not None
    assert timedelta(days=29) < after.valid_until - now <= timedelta(days=30, minutes=1)
    assert ((after.capabilities, after.envelope), after.version) == (terms, granted.version + 1)
    statement = statement_of(granted, now)
    assert statement["valid_until"] == timestamp(after.valid_until)
    assert statement["grant_version"] == granted.version
    [line] = [each for each in text_of(granted) if each.startswith("This renews a grant: ")]
    for end in (old, after.valid_until):
        assert f"{end:%H:%M}" in line
    event = Event.objects.get(kind=kinds.GRANT_RENEWED)
    assert event.data["valid_until_before"] == timestamp(old)
    assert event.data["valid_until"] == timestamp(after.valid_until)
    assert not Renewal.objects.exists()
    # The agent sees it, and gets tokens of the new version.
    seen = agent.call("GET", f"/v1/grants/{granted.pk}").json()
    assert (seen["valid_until"], seen["status"]) == (timestamp(after.valid_until), "approved")
    assert issue(agent, granted).json()["access_token"] != token["access_token"]
    assert list(find_contradictions(now=timezone.now())) == []


def test_a_session_asks_for_a_renewal_and_changes_nothing_else(
    alice: Person, granted: Grant, agent: AgentClient
) -> None:
    before = Grant.objects.filter(pk=granted.pk).values().get()
    asked(alice, granted)
    assert Grant.objects.filter(pk=granted.pk).values().get() == before
    # The grant stays in force, and a renewal has no denial, which would be a receipt against it.
    assert issue(agent, granted).status_code == 201
    refused = alice.ask(granted, "statement", decision="deny")
    assert "Revoke the grant" in assert_refused(refused, 409, "invalid_state")["error_description"]
    assert Event.objects.filter(kind=kinds.GRANT_RENEWAL_REQUESTED).count() == 1


def test_what_was_used_stays_used_after_a_renewal(alice: Person, granted: Grant) -> None:
    day = timezone.localdate(timezone=ZoneInfo("Europe/Berlin")).isoformat()
    spent = {"EUR/day/Europe/Berlin": [day, 123_45]}
    row = GrantLedger.objects.create(grant=granted, uses=7, spent=spent)
    asked(alice, granted)
    assert "€123.45" in alice.get(f"/approvals/{granted.pk}/").content.decode()
    assert alice.approve(granted).status_code == 200
    row.refresh_from_db()
    assert (row.spent, row.uses) == (spent, 7)
    assert "€123.45" in alice.get(f"/approvals/{granted.pk}/").content.decode()


def test_a_renewal_may_narrow_and_refuses_tokens_of_the_wider_terms(
    alice: Person, granted: Grant, agent: AgentClient
) -> None:
    asked(alice, granted)
    # The grant is in force: it counts once, before and after.
    assert ["Permissions", "2", "2"] in alice.ask(granted, "review").json()["totals"]
    wider = alice.ask(granted, "review", choices=BOTH | {"amount.1": "101"})
    assert_refused(wider, 400, "invalid_request")
    assert alice.approve(granted, **BOTH, **{"amount.1": "10"}).status_code == 200
    after = fresh(granted)
    assert after.capabilities is not None
    assert after.capabilities[1]["max_amount"] == {"value": "10.00", "currency": "EUR"}
    assert after.version == granted.version + 1
    assert issue(agent, granted).status_code == 201


def test_a_renewal_never_brings_the_end_forward(alice: Person, granted: Grant) -> None:
    asked(alice, granted)
    answer = alice.ask(granted, "review", choices=BOTH | {"days": "3"})
    body = assert_refused(answer, 400, "invalid_request")
    [[name, why]] = body["choices"]
    assert (name, "must end later" in why) == ("days", True)
    assert alice.approve(granted, **BOTH, days="10").status_code == 200


def test_the_registry_renews_no_grant_to_an_end_that_is_not_later(
    alice: Person, granted: Grant
) -> None:
    """Also if the page and its statement let it pass, and none that no one asked to renew."""
    now, end = timezone.now(), granted.valid_until
    assert end is not None
    with pytest.raises(GrantChangedError):
        renewed(granted, alice.human, end, now)
    grant = fresh(asked(alice, granted))
    for wrong, why in (
        (end, "must end later"),
        (latest_end(grant, now) + timedelta(seconds=1), "bring the end forward"),
    ):
        with pytest.raises(InvalidRequestError, match=why):
            renewed(grant, alice.human, wrong, now)


def _revoked(grant: Grant, now: datetime) -> None:
    revoke_grant(grant=grant, actor=TESTER, now=now)


def _suspended(grant: Grant, now: datetime) -> None:
    suspend_grant(grant=grant, actor=TESTER, now=now)


def _expired(grant: Grant, now: datetime) -> None:
    Grant.objects.filter(pk=grant.pk).update(valid_until=now)


def _agent_suspended(grant: Grant, now: datetime) -> None:
    suspend_agent(agent=grant.agent, actor=TESTER, now=now)


def _agent_expired(grant: Grant, now: datetime) -> None:
    Agent.objects.filter(pk=grant.agent_id).update(expires_at=now)


def _agent_ends_first(grant: Grant, now: datetime) -> None:
    Agent.objects.filter(pk=grant.agent_id).update(expires_at=grant.valid_until)


def _service_suspended(grant: Grant, now: datetime) -> None:
    suspend_service_provider(service_provider=grant.service_provider, actor=TESTER, now=now)


def _as_asked(grant: Grant, now: datetime) -> None:
    Grant.objects.filter(pk=grant.pk).update(requested_seconds=3 * 86_400)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_revoked, "The agent can no longer use it"),
        (_suspended, "You suspended this grant"),
        (_expired, "The agent can ask again"),
        (_agent_suspended, "the agent is not active"),
        (_agent_expired, "the agent is not active"),
        (_agent_ends_first, "the agent must renew first"),
        (_service_suspended, "the service is not active"),
        (_as_asked, "as long as the agent asked for"),
    ],
)
def test_what_cannot_be_renewed_says_why(
    alice: Person, granted: Grant, now: datetime, change: Any, why: str
) -> None:
    assert 'action="renew"' in alice.get(f"/approvals/{granted.pk}/").content.decode()
    change(granted, now)
    page = alice.get(f"/approvals/{granted.pk}/").content.decode()
    assert why in page
    assert 'action="renew"' not in page
    assert renew(alice, granted).status_code == 409
    assert not Renewal.objects.exists()


@pytest.mark.parametrize(
    "change",
    [_revoked, _suspended, _expired, _agent_suspended, _agent_expired, _service_suspended],
)
def test_nothing_is_renewed_that_ended_between_opening_and_signing(
    alice: Person, granted: Grant, now: datetime, change: Any
) -> None:
    options = signed_for(alice, asked(alice, granted))
    change(granted, now)
    before = fresh(granted)
    assert alice.decide(granted, options).status_code in {409, 410}
    after = fresh(granted)
    assert (after.status, after.valid_until) == (before.status, before.valid_until)
    assert not Event.objects.filter(kind=kinds.GRANT_RENEWED).exists()


@pytest.mark.parametrize("moved", [timedelta(0), timedelta(minutes=-59), timedelta(days=365)])
def test_DJ_17_a_renewal_that_no_service_wrote_gives_nothing(
    alice: Person, bob: Person, granted: Grant, agent: AgentClient, now: datetime, moved: timedelta
) -> None:
    """It has no seal, because the right stands on the receipt alone (ADR 51)."""
    before, path = Grant.objects.filter(pk=granted.pk).values().get(), f"/approvals/{granted.pk}/"
    seen = agent.call("GET", f"/v1/grants/{granted.pk}").json()
    Renewal.objects.create(grant=granted, asked_at=now + moved)
    assert issue(agent, granted).status_code == 201
    assert agent.call("GET", f"/v1/grants/{granted.pk}").json() == seen
    for answer in (bob.get(path), bob.statement(granted, drawn="x"), bob.post(f"{path}decide")):
        assert answer.status_code == 404
    later = latest_end(fresh(granted), now)
    for human, end, refusal in (
        (bob.human, later, NotFoundError),
        (alice.human, later + DAY, InvalidRequestError),
    ):
        with pytest.raises(refusal):
            renewed(granted, human, end, now)
    assert Grant.objects.filter(pk=granted.pk).values().get() == before
    # Even an end that a service wrote without a signature is no end.
    renewed(granted, alice.human, later, now)
    assert issue(agent, granted).status_code == 400
    assert [each.subject for each in find_contradictions(now=timezone.now())] == [str(granted.pk)]


def renewed(grant: Grant, human: Human, end: datetime, now: datetime) -> None:
    """As the registry does once a signature was verified, but without one."""
    grant = fresh(grant)
    approve_grant(
        grant=grant,
        human=human,
        capabilities=parse_capabilities(grant.capabilities),
        envelope=parse_envelope(grant.envelope),
        valid_until=end,
        actor=TESTER,
        now=now,
    )


def test_of_two_tabs_the_second_signs_nothing(alice: Person, granted: Grant) -> None:
    drawn = alice.drawn(asked(alice, granted))
    assert alice.approve(granted).status_code == 200
    first = fresh(granted).valid_until
    assert_refused(alice.ask(granted, "review", drawn=drawn), 409, "invalid_state")
    assert fresh(granted).valid_until == first
    assert Event.objects.filter(kind=kinds.GRANT_RENEWED).count() == 1


def test_a_renewal_asked_twice_waits_once(alice: Person, granted: Grant) -> None:
    asked(alice, granted)
    at = Renewal.objects.get().asked_at
    asked(alice, granted)
    assert Renewal.objects.get().asked_at == at
    assert Event.objects.filter(kind=kinds.GRANT_RENEWAL_REQUESTED).count() == 1
    inbox = alice.get("/approvals/").content.decode()
    assert "1 decision waits for you" in inbox
    assert alice.get("/approvals/waiting").json()["waiting"] == "1"
    assert "Renew the grant at" in inbox


def test_a_renewal_is_not_asked_for_a_grant_that_changed_meanwhile(
    alice: Person, granted: Grant, now: datetime
) -> None:
    read = fresh(granted)
    raise_version(grant=fresh(granted), cause="test", actor=TESTER, now=now)
    with pytest.raises(InvalidStateError, match="just changed"):
        request_renewal(grant=read, actor=TESTER, now=now)
    assert not Renewal.objects.exists()


def test_a_renewal_lapses_after_an_hour_and_the_grant_stays(
    alice: Person, granted: Grant, now: datetime
) -> None:
    options = signed_for(alice, asked(alice, granted))
    Renewal.objects.update(asked_at=now - timedelta(hours=1))
    assert_refused(alice.decide(granted, options), 409, "invalid_state")
    assert alice.get("/approvals/waiting").json()["waiting"] == ""
    expire_everything(now=timezone.now())
    assert not Renewal.objects.exists()
    assert fresh(granted).status == "approved"
    assert renew(alice, granted).status_code == 302


def test_only_its_owner_asks_to_renew_a_grant(bob: Person, granted: Grant) -> None:
    assert_refused(renew(bob, granted), 404, "not_found")
    assert not Renewal.objects.exists()


def test_a_job_that_read_the_old_end_does_not_end_a_renewed_grant(
    alice: Person, granted: Grant
) -> None:
    read = fresh(granted)
    assert read.valid_until is not None
    assert alice.approve(asked(alice, granted)).status_code == 200
    with pytest.raises(InvalidStateError, match="changed"):
        expire_grant(grant=read, actor=TESTER, now=read.valid_until)
    assert fresh(granted).status == "approved"


@pytest.fixture
def carol(keys: None, now: datetime) -> Person:
    return registered("carol@example.org", "Carol", now=now)


@pytest.fixture
def groups(bob: Person, carol: Person, granted: Grant, now: datetime) -> None:
    """Since the grant was approved, a rule sends everything to Bob, and then to Carol."""
    last = create_group(name="Directors", wait_minutes=15, next_group=None, actor=TESTER, now=now)
    first = create_group(name="Finance", wait_minutes=15, next_group=last, actor=TESTER, now=now)
    add_member(group=first, human=bob.human, actor=TESTER, now=now)
    add_member(group=last, human=carol.human, actor=TESTER, now=now)
    create_rule(name="Everything", group=first, actor=TESTER, now=now)


def test_a_rule_sends_a_renewal_to_its_group(
    alice: Person, bob: Person, groups: None, granted: Grant, now: datetime
) -> None:
    assert_refused(bob.ask(granted, "review", drawn="x"), 409, "invalid_state")
    asked(alice, granted)
    page = alice.get(f"/approvals/{granted.pk}/").content.decode()
    assert "Others decide on this" in page
    assert "Approve with passkey" not in page
    assert (
        "Bob" in assert_refused(alice.statement(granted), 409, "invalid_state")["error_description"]
    )
    assert "Renew the grant at" in bob.get("/approvals/").content.decode()
    assert bob.get("/approvals/waiting").json()["waiting"] == "1"
    assert bob.approve(granted).json()["status"] == "Approved"
    after = fresh(granted)
    assert after.valid_until is not None
    assert after.valid_until > now + 28 * DAY
    assert after.human_id == bob.human.pk
    assert statement_of(granted, now)["routing"]["as"] == "member"
    assert list(find_contradictions(now=timezone.now())) == []


def test_a_signed_renewal_is_shown_to_no_one_whom_it_had_not_reached(
    alice: Person, bob: Person, carol: Person, groups: None, granted: Grant, now: datetime
) -> None:
    long_ago = now - 20 * DAY
    end = long_ago + timedelta(hours=1)
    Grant.objects.filter(pk=granted.pk).update(created_at=long_ago, expires_at=end)
    asked(alice, granted)
    assert bob.approve(granted).json()["status"] == "Approved"
    for place in ("", "receipt/", "receipt/?format=jws"):
        path = f"/approvals/{granted.pk}/{place}"
        assert [each.get(path).status_code for each in (bob, carol)] == [200, 404], place


def test_a_renewal_is_told_and_passed_on_as_every_request_is(
    alice: Person, bob: Person, carol: Person, groups: None, granted: Grant, now: datetime
) -> None:
    for person in (alice, bob, carol):
        by_mail(person.human, now)
    what = Notification.What
    # What was sent about the request itself does not stand for what is sent about its renewal.
    for person, told in ((alice, what.DECIDED), (bob, what.REQUEST)):
        _sent(person, told, granted, now)
    asked(alice, granted)
    at = Renewal.objects.get().asked_at
    assert tell_approvers(now=at) == 1
    assert outbox(channel__human=bob.human) == [("request", "pending")]
    assert tell_approvers(now=at + timedelta(minutes=14)) == 0
    assert tell_approvers(now=at + timedelta(minutes=15)) == 1
    assert outbox(channel__human=carol.human) == [("request", "pending")]
    steps = Event.objects.filter(kind__startswith="approvals.request.").order_by("pk")
    assert [each.data["because"] for each in steps] == ["rule", "waited"]
    assert tell_approvers(now=at + timedelta(minutes=50)) == 2
    path = f"/approvals/{granted.pk}/"
    assert (bob.get(path).status_code, carol.get(path).status_code) == (200, 404)
    Renewal.objects.update(asked_at=at - timedelta(minutes=16))
    assert carol.get(path).status_code == 200
    assert send_notifications(now=timezone.now()) > 0
    assert ("request", "sent") in outbox(channel__human=bob.human)
    bob.approve(granted)
    assert outbox(channel__human=alice.human) == [("decided", "pending")]


def _sent(person: Person, what: Notification.What, grant: Grant, now: datetime) -> None:
    Notification.objects.create(
        channel=NotificationChannel.objects.get(human=person.human),
        what=what,
        subject=grant.pk,
        state=Notification.State.SENT,
        created_at=now,
        due_at=now,
        expires_at=now,
        ended_at=now,
    )


def test_after_a_restore_to_the_earlier_end_it_is_signed_and_renewed_again(
    alice: Person, granted: Grant, now: datetime
) -> None:
    old = granted.valid_until
    cause = Grant.SuspensionCause.RESTORED
    asked(alice, granted)
    suspend_grant(grant=fresh(granted), actor=TESTER, now=now, cause=cause)
    # A renewal that was asked before the backup gives nothing: it is signed for its own end.
    assert alice.approve(granted).status_code == 200
    assert fresh(granted).valid_until == old
    assert not Renewal.objects.exists()
    assert alice.approve(asked(alice, granted)).status_code == 200
    assert list(find_contradictions(now=timezone.now())) == []


def test_a_deleted_person_leaves_no_renewal_and_no_text(
    alice: Person, admin: Person, granted: Grant, now: datetime
) -> None:
    alice.approve(asked(alice, granted))
    Renewal.objects.create(grant=granted, asked_at=now)
    delete_human(human=alice.human, actor=TESTER, now=timezone.now())
    assert not Grant.objects.to_renew(timezone.now()).exists()
    assert not Receipt.objects.filter(subject=str(granted.pk)).exclude(compact="").exists()
