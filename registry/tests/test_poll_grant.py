"""GET /v1/grants and /v1/grants/{id}: waiting for a decision, how often, and the list."""

import threading
import time
from datetime import datetime, timedelta
from typing import Any

import pytest

from registry.api import long_poll
from registry.models import Grant, Human, ServiceProvider
from registry.services.grants import deny_grant
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused, pending

pytestmark = pytest.mark.django_db


def test_a_pending_grant_says_where_and_how_often_to_ask(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now, reason="Why")
    body = agent.call("GET", f"/v1/grants/{grant.id}").json()
    assert (body["status"], body["interval"], body["reason"]) == ("pending", 2, "Why")
    assert body["approval_url"].endswith(f"/approvals/{grant.id}/")
    assert (body["granted"], body["narrowed"], body["decided_at"], body["valid_until"]) == (
        None,
        [],
        None,
        None,
    )
    assert body["service_provider"]["audience"] == service_provider.audience


def test_AP_34_polling_too_fast_slows_down(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    path = f"/v1/grants/{grant.id}"
    assert agent.call("GET", path).status_code == 200
    response = agent.call("GET", path)
    assert assert_refused(response, 429, "slow_down")["interval"] == 7
    assert response["Retry-After"] == "7"
    assert assert_refused(agent.call("GET", path), 429, "slow_down")["interval"] == 12
    Grant.objects.update(polled_at=now - timedelta(seconds=13))
    assert agent.call("GET", path).json()["interval"] == 12


def test_slow_down_adds_five_seconds_each_time_up_to_sixty(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    path = f"/v1/grants/{pending(agent, service_provider, now=now).id}"
    first = agent.call("GET", path).json()["interval"]
    told = [
        assert_refused(agent.call("GET", path), 429, "slow_down")["interval"] for _ in range(14)
    ]
    assert told == [min(first + 5 * times, 60) for times in range(1, 15)]


def test_a_decided_grant_may_be_read_as_often_as_one_likes(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    for _ in range(3):
        body = agent.call("GET", f"/v1/grants/{grant.id}").json()
        assert (body["status"], body["narrowed"]) == ("approved", [])
        assert "approval_url" not in body


def test_waiting_ends_with_the_decision(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = pending(agent, service_provider, now=now)

    def decide(_seconds: float) -> None:
        deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=now)

    monkeypatch.setattr("registry.api.long_poll.time.sleep", decide)
    body = agent.call("GET", f"/v1/grants/{grant.id}", query="?wait=30").json()
    assert body["status"] == "denied"


def test_waiting_ends_with_its_time(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    begun = time.monotonic()
    assert (
        agent.call("GET", f"/v1/grants/{grant.id}", query="?wait=1").json()["status"] == "pending"
    )
    assert 0.9 < time.monotonic() - begun < 10


def test_a_wait_beyond_the_servers_places_answers_at_once(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = pending(agent, service_provider, now=now)
    full = threading.BoundedSemaphore(1)
    full.acquire()
    monkeypatch.setattr(long_poll, "LONG_POLLS", full)
    begun = time.monotonic()
    assert (
        agent.call("GET", f"/v1/grants/{grant.id}", query="?wait=30").json()["status"] == "pending"
    )
    assert time.monotonic() - begun < 10


def test_an_expired_request_reads_as_expired_before_any_job_ran(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now - timedelta(hours=1))
    assert agent.call("GET", f"/v1/grants/{grant.id}").json()["status"] == "expired"


def test_the_list_is_newest_first_and_comes_in_pages(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    made = [
        str(
            pending(
                agent,
                service_provider,
                now=now,
                capabilities=[{"type": "read", "resource": f"calendar/{n}"}],
            ).id
        )
        for n in range(3)
    ]
    seen: list[Any] = []
    query = "?limit=2"
    while query:
        page = agent.call("GET", "/v1/grants", query=query).json()
        seen += [grant["grant_id"] for grant in page["results"]]
        query = f"?limit=2&after={page['next']}" if page["next"] else ""
    assert seen == sorted(made, reverse=True)


def test_revoke_and_withdraw_over_http(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    assert_refused(agent.call("POST", f"/v1/grants/{grant.id}/withdraw", {}), 409, "invalid_state")
    for _ in range(2):
        assert agent.call("POST", f"/v1/grants/{grant.id}/revoke", {}).status_code == 204
    waiting = pending(agent, service_provider, now=now)
    assert_refused(agent.call("POST", f"/v1/grants/{waiting.id}/revoke", {}), 409, "invalid_state")
    assert_refused(
        agent.call("POST", f"/v1/grants/{waiting.id}/withdraw", {"why": "x"}),
        400,
        "invalid_request",
    )
    for _ in range(2):
        assert agent.call("POST", f"/v1/grants/{waiting.id}/withdraw").status_code == 204
    assert agent.call("GET", f"/v1/grants/{waiting.id}").json()["status"] == "withdrawn"
