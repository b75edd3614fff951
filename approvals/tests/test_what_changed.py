"""Changes during and after an approval, over HTTP: stale pages, and signing a grant again."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from approvals.models import Receipt
from approvals.tests.cast import DELETE, PAY, READ_CALENDAR, Person
from registry.models import Agent, Grant, ServiceProvider
from registry.services.grants import approve_grant, resume_grant, suspend_grant
from registry.services.service_providers import (
    change_allowed,
    change_audience,
    suspend_service_provider,
)
from registry.tests.cast import MANIFEST, TESTER, AgentClient, assert_refused, issue, pending

pytestmark = pytest.mark.django_db
ALL = ["read:calendar", "write:files", "transact:payments", "delete:files"]
MOVED = "http://127.0.0.1:8009"


def withdrawn(agent: AgentClient, grant: Grant, now: datetime) -> None:
    assert agent.call("POST", f"/v1/grants/{grant.pk}/withdraw", {}).status_code == 204


def key_rotated(agent: AgentClient, grant: Grant, now: datetime) -> None:
    assert agent.rotate().status_code == 200


def renamed(agent: AgentClient, grant: Grant, now: datetime) -> None:
    assert agent.replace(name="Trusted Helper").status_code == 200


def renewed(agent: AgentClient, grant: Grant, now: datetime) -> None:
    assert agent.replace().status_code == 200


def moved(agent: AgentClient, grant: Grant, now: datetime) -> None:
    change_audience(service_provider=grant.service_provider, audience=MOVED, actor=TESTER, now=now)


def allows_less(agent: AgentClient, grant: Grant, now: datetime) -> None:
    change_allowed(service_provider=grant.service_provider, allowed=ALL[1:], actor=TESTER, now=now)


def allows_more(agent: AgentClient, grant: Grant, now: datetime) -> None:
    change_allowed(
        service_provider=grant.service_provider, allowed=[*ALL, "read:mail"], actor=TESTER, now=now
    )


def stopped(agent: AgentClient, grant: Grant, now: datetime) -> None:
    suspend_service_provider(service_provider=grant.service_provider, actor=TESTER, now=now)


CHANGES = [withdrawn, key_rotated, renamed, renewed, moved, allows_less, allows_more, stopped]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("when", ["before_statement", "before_signature"])
def test_AP_2_whatever_changes_under_a_drawn_page_grants_nothing(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime, change: Any, when: str
) -> None:
    drawn = alice.drawn(reading)
    if when == "before_statement":
        change(agent, reading, now)
        body = assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
        assert body["changes"]
    else:
        options = alice.statement(reading, drawn=drawn).json()["publicKey"]
        change(agent, reading, now)
        assert_refused(alice.decide(reading, options), 409, "grant_changed")
    reading.refresh_from_db()
    assert reading.status in {"pending", "withdrawn"}
    assert not Receipt.objects.exists()


@pytest.mark.parametrize("change", [key_rotated, renamed, renewed, moved, allows_more])
def test_AP_2_reloaded_page_shows_the_change_and_can_be_signed(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime, change: Any
) -> None:
    change(agent, reading, now)
    assert alice.approve(reading).status_code == 200
    reading.refresh_from_db()
    assert reading.status == "approved"


def test_AP_2_key_change_is_shown_by_fingerprint(
    alice: Person, agent: AgentClient, reading: Grant
) -> None:
    drawn, old = alice.drawn(reading), agent.jkt
    agent.rotate()
    body = assert_refused(alice.statement(reading, drawn=drawn), 409, "grant_changed")
    (line,) = [each for each in body["changes"] if "key" in each]
    assert old[:4] in line
    assert agent.jkt[:4] in line


def test_AP_2_a_rotation_between_the_look_and_the_swap_grants_nothing(
    alice: Person, agent: AgentClient, reading: Grant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The change commits after the page's checks and before the approval takes its locks."""
    options = alice.statement(reading).json()["publicKey"]

    def rotated_first(**arguments: Any) -> None:
        agent.rotate()
        approve_grant(**arguments)

    monkeypatch.setattr("approvals.services.grant_decision_signing.approve_grant", rotated_first)
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
    reading.refresh_from_db()
    assert reading.status == "pending"


@pytest.fixture
def broad(
    agent: AgentClient, alice: Person, service_provider: ServiceProvider, now: datetime
) -> Grant:
    """An approved grant to read, to pay and to delete."""
    agent.replace(capabilities=[*MANIFEST, DELETE], later=2)
    grant = pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY, DELETE])
    assert alice.approve(grant).status_code == 200
    grant.refresh_from_db()
    return grant


def page(alice: Person, grant: Grant) -> str:
    return str(alice.get(f"/approvals/{grant.pk}/").content.decode())


def test_grant_suspended_by_new_key_shows_both_and_resumes_if_signed(
    alice: Person, agent: AgentClient, broad: Grant, now: datetime
) -> None:
    old = agent.jkt
    agent.rotate()
    shown = page(alice, broad)
    assert f"{old[:4]} {old[4:8]}" in shown
    assert f"{agent.jkt[:4]} {agent.jkt[4:8]}" in shown
    assert_refused(issue(agent, broad), 400, "invalid_grant")
    assert alice.approve(broad).status_code == 200
    broad.refresh_from_db()
    assert (broad.status, broad.version, broad.suspension_cause) == ("approved", 2, "")
    assert issue(agent, broad).status_code == 201


def test_a_grant_beyond_a_narrower_manifest_is_signed_narrowed(
    alice: Person, agent: AgentClient, broad: Grant
) -> None:
    """Removed permissions are shown off; a reduced payment is offered at its lower limit."""
    fifty = PAY | {"max_amount": {"value": "50.00", "currency": "EUR"}}
    agent.replace(
        capabilities=[{"type": "read", "resource": "calendar/work"}, fifty], name="Renamed", later=9
    )
    broad.refresh_from_db()
    assert broad.suspension_cause == "manifest_changed"
    shown = page(alice, broad)
    for words in (
        "No longer possible",
        "The agent no longer declares it.",
        "was called “Research Assistant” and is now called “Renamed”",
        "changed its description",
    ):
        assert words in shown
    [first, *_rest] = [
        line for line, given in alice.get(f"/approvals/{broad.pk}/").context["statement"] if given
    ]
    assert first.startswith("The agent may read “calendar/work”")
    # More than offered: the third row is gone, and the second not above its new limit.
    assert_refused(alice.statement(broad, choices={"permission.2": "on"}), 400, "invalid_request")
    assert_refused(
        alice.statement(broad, choices={"permission.1": "on", "amount.1": "51"}),
        400,
        "invalid_request",
    )
    assert alice.approve(broad).status_code == 200
    broad.refresh_from_db()
    assert (broad.status, broad.capabilities) == (
        "approved",
        [{"type": "read", "resource": "calendar/work"}, fifty],
    )
    assert broad.requested_capabilities == [READ_CALENDAR, PAY, DELETE]


def test_what_two_overlapping_lists_have_in_common_can_be_signed(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """A manifest that now declares other payees, some of them the granted ones."""

    def paying(*payees: str) -> dict[str, Any]:
        return PAY | {"constraints": {"payee": {"in": [*payees]}}}

    agent.replace(capabilities=[paying("ACME", "Bolt")], later=2)
    grant = pending(agent, service_provider, now=now, capabilities=[paying("ACME", "Bolt")])
    assert alice.approve(grant).status_code == 200
    agent.replace(capabilities=[paying("Bolt", "Cog")], later=9)
    assert alice.approve(grant).status_code == 200
    grant.refresh_from_db()
    assert (grant.status, grant.capabilities) == ("approved", [paying("Bolt")])


def test_a_grant_beyond_a_narrower_allow_list_is_signed_narrowed(
    alice: Person, agent: AgentClient, broad: Grant, now: datetime
) -> None:
    change_allowed(
        service_provider=broad.service_provider, allowed=["read:calendar"], actor=TESTER, now=now
    )
    broad.refresh_from_db()
    assert broad.suspension_cause == "allowed_changed"
    shown = page(alice, broad)
    assert shown.count("The service no longer allows it.") == 2
    assert "changed what it allows" in shown
    assert alice.approve(broad, **{"permission.0": "on"}).status_code == 200
    broad.refresh_from_db()
    assert broad.capabilities == [READ_CALENDAR]


def test_where_nothing_is_left_nothing_can_be_approved(
    alice: Person, agent: AgentClient, broad: Grant, now: datetime
) -> None:
    change_allowed(service_provider=broad.service_provider, allowed=[], actor=TESTER, now=now)
    shown = page(alice, broad)
    assert "Nothing is left that you can approve" in shown
    assert 'value="approve"' not in shown
    assert_refused(alice.statement(broad), 400, "invalid_request")
    assert alice.end(f"/approvals/{broad.pk}/revoke/").status_code == 302


def test_request_now_partly_allowed_can_be_approved_in_part_or_denied(
    alice: Person, paying: Grant, now: datetime
) -> None:
    change_allowed(
        service_provider=paying.service_provider,
        allowed=["transact:payments"],
        actor=TESTER,
        now=now,
    )
    assert "The service no longer allows it." in page(alice, paying)
    options = alice.statement(paying, "deny", choices={"reason": ""})
    assert options.status_code == 200
    assert alice.approve(paying, **{"permission.0": "on"}).status_code == 200
    paying.refresh_from_db()
    assert paying.capabilities == [PAY]


def test_a_grant_whose_service_moved_and_came_back_still_waits(
    alice: Person, agent: AgentClient, broad: Grant, now: datetime
) -> None:
    home = broad.service_provider.audience
    for audience in (MOVED, home):
        change_audience(
            service_provider=broad.service_provider, audience=audience, actor=TESTER, now=now
        )
    broad.refresh_from_db()
    assert (broad.status, broad.suspension_cause, broad.version) == (
        "suspended",
        "audience_changed",
        3,
    )
    assert "to another address and back" in page(alice, broad)


def test_what_an_admin_holds_is_neither_signed_nor_resumed_by_its_owner(
    alice: Person, agent: AgentClient, broad: Grant, now: datetime
) -> None:
    agent.rotate()
    broad = Grant.objects.select_related("agent__human", "service_provider").get(pk=broad.pk)
    drawn = alice.drawn(broad)
    suspend_grant(grant=broad, actor=TESTER, now=now, by_admin=True)
    assert_refused(alice.statement(broad, drawn=drawn), 409, "grant_changed")
    assert 'id="approval"' not in page(alice, broad)
    assert alice.get("/approvals/").context["waiting_count"] == 0
    # The administrator lifts their suspension: it waits for the signature, and is void before it.
    resume_grant(grant=broad, actor=TESTER, now=now, by_admin=True)
    assert (broad.status, broad.suspension_cause) == ("suspended", "key_rotated")
    assert alice.approve(broad).status_code == 200


def test_an_agent_that_expired_since_the_page_was_drawn_gets_nothing(
    alice: Person, agent: AgentClient, reading: Grant, now: datetime
) -> None:
    options = alice.statement(reading).json()["publicKey"]
    Agent.objects.update(expires_at=now - timedelta(seconds=1))
    assert_refused(alice.decide(reading, options), 409, "grant_changed")
