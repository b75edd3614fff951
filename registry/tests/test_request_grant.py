"""POST /v1/grants: what may be requested, how much at once, and how soon again."""

import contextlib
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings

from agentauth.protocol.behavioural_envelope import EMPTY
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.errors import (
    CooldownActiveError,
    GrantTooLargeError,
    InvalidScopeError,
    TooManyPendingGrantsError,
)
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.token import MAX_SIGNING_INPUT
from audit.models import Event
from audit.services import SYSTEM, Actor
from registry.models import Grant, Human, ServiceProvider
from registry.services import grant_requests, grants
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.grant_requests import request_grant
from registry.services.grants import deny_grant
from registry.services.service_providers import create_service_provider, suspend_service_provider
from registry.services.token_size import check_token_fits
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    assert_refused,
    enrolled,
    grant_request,
    issue,
    minutes,
    pending,
)

pytestmark = pytest.mark.django_db


def calendar(number: int) -> dict[str, Any]:
    return {"type": "read", "resource": f"calendar/{number}"}


def test_a_request_is_pending_for_an_hour(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    response = agent.ask(service_provider, reason="To plan the week", envelope={"max_uses": 3})
    body = response.json()
    assert response.status_code == 201
    assert body.keys() == {"grant_id", "status", "approval_url", "expires_at", "interval"}
    assert (body["status"], body["interval"]) == ("pending", 2)
    assert body["approval_url"] == f"{settings.PUBLIC_URL}/approvals/{body['grant_id']}/"
    grant = Grant.objects.get()
    assert grant.expires_at - grant.created_at == timedelta(hours=1)
    assert grant.requested_seconds == 30 * 86_400
    event = Event.objects.get(kind="registry.grant.requested")
    assert (event.grant_id, event.agent_id) == (grant.id, grant.agent_id)
    assert "To plan the week" not in str(event.data)


def test_a_service_provider_is_named_by_id_or_slug(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    by_id = agent.ask(service_provider, service_provider=str(service_provider.id)).json()
    assert agent.ask(service_provider).json()["grant_id"] == by_id["grant_id"]


def test_an_unknown_or_suspended_service_provider_is_not_found(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    unknown = assert_refused(
        agent.ask(service_provider, service_provider="nobody"), 404, "not_found"
    )
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert assert_refused(agent.ask(service_provider), 404, "not_found") == unknown


def test_an_identical_pending_request_is_itself_whatever_its_reason(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    first, second = agent.ask(service_provider, reason="a"), agent.ask(service_provider, reason="b")
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert Event.objects.filter(kind="registry.grant.requested").count() == 1
    assert agent.ask(service_provider, envelope={"max_uses": 1}).status_code == 201


def test_OG_9_request_that_the_job_expires_meanwhile_makes_way(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The job expires the old request between the read and the swap: the new one is made."""
    old = pending(agent, service_provider, now=now - timedelta(hours=1))
    expire = grants.expire_grant

    def job_first(*, grant: Grant, actor: Actor, now: datetime) -> None:
        expire(grant=Grant.objects.get(pk=grant.pk), actor=SYSTEM, now=now)
        expire(grant=grant, actor=actor, now=now)

    monkeypatch.setattr(grant_requests, "expire_grant", job_first)
    new = pending(agent, service_provider, now=now)
    assert new.pk != old.pk
    assert Event.objects.get(kind="registry.grant.expired").actor_kind == "system"


def test_order_of_capabilities_makes_no_other_request(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    several = [READ_CALENDAR, calendar(1), calendar(2)]
    first = agent.ask(service_provider, capabilities=several)
    second = agent.ask(service_provider, capabilities=several[::-1])
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert agent.ask(service_provider, capabilities=several[1:]).status_code == 201


def test_OG_9_an_expired_request_makes_way_and_does_not_count(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    earlier = now - timedelta(hours=1)
    old = [
        pending(agent, service_provider, now=earlier, capabilities=[calendar(number)])
        for number in range(5)
    ]
    response = agent.ask(service_provider, capabilities=[calendar(0)])
    assert response.status_code == 201
    assert response.json()["grant_id"] != str(old[0].id)
    old[0].refresh_from_db()
    assert old[0].status == "expired"
    # The other four have expired too, whether or not a job recorded it: four more may wait.
    listed = agent.call("GET", "/v1/grants").json()["results"]
    assert [grant["status"] for grant in listed] == ["pending", *["expired"] * 5]
    answers = [
        agent.ask(service_provider, capabilities=[calendar(number)]) for number in range(1, 6)
    ]
    assert [answer.status_code for answer in answers] == [201] * 4 + [429]


@pytest.mark.parametrize(
    "capabilities",
    [
        [{"type": "write", "resource": "calendar"}],  # the manifest has only read
        [{"type": "read", "resource": "mail"}],  # the service provider would allow it
        [{"type": "delete", "resource": "files"}],
        [READ_CALENDAR, {"type": "read", "resource": "calendars"}],
        [PAY | {"max_amount": {"value": "100.01", "currency": "EUR"}}],
        [PAY | {"max_amount": {"value": "1.00", "currency": "USD"}}],
    ],
)
def test_nothing_beyond_the_manifest(
    agent: AgentClient, service_provider: ServiceProvider, capabilities: Any
) -> None:
    assert_refused(agent.ask(service_provider, capabilities=capabilities), 400, "invalid_scope")
    assert not Grant.objects.exists()


def test_nothing_beyond_what_the_service_provider_allows(agent: AgentClient, now: datetime) -> None:
    strict, _ = create_service_provider(
        name="Closed", audience="https://nothing.example", actor=TESTER, now=now
    )
    body = assert_refused(agent.ask(strict), 400, "invalid_scope")
    assert body["error_description"] == "The service provider does not allow 'read:calendar'."
    narrow, _ = create_service_provider(
        name="Work only",
        audience="https://work.example",
        allowed=["read:calendar/work"],
        actor=TESTER,
        now=now,
    )
    with pytest.raises(InvalidScopeError):
        pending(agent, narrow, now=now)
    assert (
        agent.ask(narrow, capabilities=[{"type": "read", "resource": "calendar/work"}]).status_code
        == 201
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"capabilities": []},
        {"capabilities": "read:calendar"},
        {"capabilities": [READ_CALENDAR | {"limit": 1}]},
        {"envelope": {"max_request_per_minute": 1}},
        {"envelope": None},
        {"lifetime_seconds": 0},
        {"lifetime_seconds": 90 * 86_400 + 1},
        {"lifetime_seconds": 3600.0},
        {"lifetime_seconds": True},
        {"reason": "x" * 501},
        {"reason": None},
        {"status": "approved"},
        {"human_id": "x"},
        {
            "capabilities": [PAY],
            "envelope": {"confirm_above": {"value": "1.00", "currency": "USD"}},
        },
    ],
)
def test_unknown_members_wrong_types_and_limits_are_refused(
    agent: AgentClient, service_provider: ServiceProvider, changes: dict[str, Any]
) -> None:
    assert_refused(agent.ask(service_provider, **changes), 400, "invalid_request")
    assert not Grant.objects.exists()


def test_the_token_to_come_must_fit(agent: AgentClient, service_provider: ServiceProvider) -> None:
    wide = [READ_CALENDAR | {"constraints": {f"a{n}": {"eq": "v" * 100}}} for n in range(32)]
    assert_refused(agent.ask(service_provider, capabilities=wide), 400, "grant_too_large")
    assert not Grant.objects.exists()


def padded(length: int) -> list[dict[str, Any]]:
    """A capability with an exact length in bytes."""
    values = {"a": {"eq": "v" * 1000}, "b": {"eq": "v" * 1000}, "pad": {"eq": "v" * length}}
    return [READ_CALENDAR | {"constraints": values}]


def fits(service_provider: ServiceProvider, length: int) -> bool:
    with contextlib.suppress(GrantTooLargeError):
        check_token_fits(service_provider, parse_capabilities(padded(length)), EMPTY)
        return True
    return False


def test_KM_9_too_long_token_is_refused_at_request_and_at_approval(
    agent: AgentClient,
    service_provider: ServiceProvider,
    token_key: None,
    alice: Human,
    now: datetime,
) -> None:
    longest = max(length for length in range(1, 1000) if fits(service_provider, length))
    assert not fits(service_provider, longest + 1)
    assert_refused(
        agent.ask(service_provider, capabilities=padded(longest + 1)), 400, "grant_too_large"
    )
    assert not Grant.objects.exists()
    # A user may approve less than was requested, which can need a longer text.
    grant = pending(agent, service_provider, now=now, capabilities=[READ_CALENDAR])
    with pytest.raises(GrantTooLargeError):
        approve(grant, alice, now=now, capabilities=parse_capabilities(padded(longest + 1)))
    approve(grant, alice, now=now, capabilities=parse_capabilities(padded(longest)))
    token = issue(agent, grant).json()["access_token"]
    # The limit assumes a grant changed ten-digit times; this one is at its first version.
    assert MAX_SIGNING_INPUT - 16 < len(parse_compact(token).signing_input) <= MAX_SIGNING_INPUT


def test_AP_29_the_sixth_pending_request_of_an_agent_is_refused(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    for number in range(5):
        assert agent.ask(service_provider, capabilities=[calendar(number)]).status_code == 201
    response = agent.ask(service_provider, capabilities=[calendar(5)])
    assert_refused(response, 429, "too_many_pending_grants")
    assert 3500 < int(response["Retry-After"]) <= 3600
    # Requesting it again adds none.
    assert agent.ask(service_provider, capabilities=[calendar(4)]).status_code == 200


def test_AP_29_the_twenty_first_pending_request_of_a_human_is_refused(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    for _ in range(4):
        client = enrolled(alice, now=now)
        for number in range(5):
            pending(client, service_provider, now=now, capabilities=[calendar(number)])
    fifth = enrolled(alice, now=now)
    # This agent has none that it could withdraw.
    with pytest.raises(TooManyPendingGrantsError, match="waiting for this agent's owner"):
        pending(fifth, service_provider, now=now)


def test_AP_29_after_a_denial_the_agent_waits_one_four_and_then_24_hours(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    moment = now
    for hours in (1, 4, 24, 24):
        grant = pending(agent, service_provider, now=moment)
        deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=moment)
        almost = moment + timedelta(hours=hours) - timedelta(seconds=1)
        with pytest.raises(CooldownActiveError) as caught:
            pending(agent, service_provider, now=almost)
        assert caught.value.fields["retry_after"] == 2
        moment += timedelta(hours=hours)
    approve(pending(agent, service_provider, now=moment), alice, now=moment)
    deny_grant(
        grant=pending(agent, service_provider, now=moment),
        human=alice,
        reason="",
        actor=TESTER,
        now=moment + minutes(1),
    )
    # An approval in between restarts the count.
    pending(agent, service_provider, now=moment + minutes(61))


def test_a_cooldown_is_answered_with_how_long_to_wait(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    deny_grant(
        grant=pending(agent, service_provider, now=now),
        human=alice,
        reason="No",
        actor=TESTER,
        now=now,
    )
    response = agent.ask(service_provider)
    assert_refused(response, 429, "cooldown_active")
    assert 3500 < int(response["Retry-After"]) <= 3601


def test_a_cooldown_is_at_that_service_provider_only(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    deny_grant(
        grant=pending(agent, service_provider, now=now),
        human=alice,
        reason="",
        actor=TESTER,
        now=now,
    )
    other, _ = create_service_provider(
        name="Other",
        audience="https://other.example",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    assert agent.ask(other).status_code == 201


def test_unclaimed_agent_has_one_pending_request_and_link_claims_first(
    service_provider: ServiceProvider,
) -> None:
    client = AgentClient()
    claim_url = client.register().json()["claim_url"]
    body = client.ask(service_provider, key="k").json()
    assert body["approval_url"] == f"{claim_url}?grant={body['grant_id']}"
    assert client.ask(service_provider, key="k").json() == body
    assert (
        client.call("GET", f"/v1/grants/{body['grant_id']}").json()["approval_url"]
        == body["approval_url"]
    )
    assert_refused(
        client.ask(service_provider, envelope={"max_uses": 1}), 429, "too_many_pending_grants"
    )


def test_a_suspended_agent_may_not_ask(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.ask(service_provider), 403, "agent_inactive")
    assert agent.call("GET", "/v1/grants").status_code == 200


def test_an_expired_agent_may_not_ask(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    client = enrolled(alice, now=now, days=1)
    type(client.agent()).objects.update(expires_at=now)
    assert_refused(client.ask(service_provider), 403, "agent_inactive")
    assert client.call("GET", "/v1/agents/me").json()["status"] == "expired"


def test_OG_7_a_revoked_agent_may_not_ask(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.ask(service_provider), 401, "invalid_client")
    assert_refused(agent.call("POST", "/v1/tokens", {"grant_id": "x"}), 401, "invalid_client")


def test_a_refusal_is_one_event_of_the_agent(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    before = Event.objects.count()
    assert_refused(agent.ask(service_provider, service_provider="nobody"), 404, "not_found")
    event = Event.objects.order_by("-id").first()
    assert event is not None
    assert (Event.objects.count() - before, event.outcome, event.agent_id) == (
        1,
        "denied",
        agent.agent().id,
    )


def test_the_service_counts_the_manifest_end(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    client = enrolled(alice, now=now, days=10)
    grant = approve(pending(client, service_provider, now=now), alice, now=now)
    assert grant.valid_until == client.agent().expires_at
    assert request_grant(
        agent=client.agent(), asked=grant_request(service_provider), actor=TESTER, now=now
    )[1]
