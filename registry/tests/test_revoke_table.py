"""Revoking again, too late, unknown or foreign things, with failing writes: the whole table."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import InterfaceError, OperationalError

from audit.kinds import AGENT_REVOKED
from audit.models import Event
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import deny_grant, expire_grant, suspend_grant
from registry.services.service_providers import create_service_provider
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    enrolled,
    issue,
    pending,
)
from registry.tests.test_revoke_token import Provider, revoke, revoke_as
from tests.forging import changed_signature

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
NOBODYS = "01980000-0000-7000-8000-000000000000"


def revoke_grant(client: AgentClient, grant_id: object) -> Any:
    return client.call("POST", f"/v1/grants/{grant_id}/revoke")


def revocations() -> int:
    return Event.objects.filter(
        kind__in=["registry.grant.revoked", "registry.token.revoked"]
    ).count()


def test_RV_7_a_grant_is_revoked_once_and_answered_alike_ever_after(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    answers = [revoke_grant(agent, grant.pk) for _ in range(3)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(204, b"")] * 3
    assert revocations() == 1


def test_RV_7_a_suspended_grant_is_revoked_and_does_not_return(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    assert revoke_grant(agent, grant.pk).status_code == 204
    assert Grant.objects.get().status == "revoked"


@pytest.mark.parametrize("written", [False, True])
def test_RV_7_revoking_an_expired_grant_succeeds(
    written: bool, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """Whether or not a job has recorded its end yet."""
    grant = approved(agent, service_provider, now=now)
    with time_machine.travel(grant.valid_until or now):
        later = (grant.valid_until or now) + timedelta(seconds=1)
        if written:
            expire_grant(grant=grant, actor=TESTER, now=later)
        assert [revoke_grant(agent, grant.pk).status_code for _ in range(2)] == [204, 204]
        assert issue(agent, grant).status_code == 400


def test_RV_7_what_is_unknown_and_what_is_anothers_is_one_answer(
    agent: AgentClient, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    theirs = approved(enrolled(bob, now=now), service_provider, now=now)
    answers = [
        assert_refused(revoke_grant(agent, each), 404, "not_found")
        for each in (theirs.pk, NOBODYS, "x")
    ]
    assert answers[0] == answers[1] == answers[2]
    theirs.refresh_from_db()
    assert theirs.status == "approved"
    assert revocations() == 0


ENDS: dict[str, Callable[[Grant, datetime], object]] = {
    "pending": lambda grant, now: (grant, now),
    "withdrawn": lambda grant, now: withdraw_grant(grant=grant, actor=TESTER, now=now),
    "denied": lambda grant, now: deny_grant(
        grant=grant, human=_owner(grant), reason="", actor=TESTER, now=now
    ),
}


def _owner(grant: Grant) -> Human:
    assert grant.agent.human
    return grant.agent.human


@pytest.mark.parametrize("status", list(ENDS))
def test_RV_7_what_was_never_approved_cannot_be_revoked(
    status: str, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    ENDS[status](grant, now)
    assert_refused(revoke_grant(agent, grant.pk), 409, "invalid_state")
    assert Grant.objects.get().status == status


def test_RV_7_an_agent_that_revoked_itself_is_a_stranger_afterwards(agent: AgentClient) -> None:
    assert agent.call("DELETE", "/v1/agents/me").status_code == 204
    assert_refused(agent.call("DELETE", "/v1/agents/me"), 401, "invalid_client")


@pytest.mark.parametrize("key", [None, "once"])
def test_a_repeated_delete_of_oneself_is_401_whatever_its_key(
    agent: AgentClient, key: str | None
) -> None:
    assert agent.call("DELETE", "/v1/agents/me", key=key).status_code == 204
    for _ in range(2):
        assert_refused(agent.call("DELETE", "/v1/agents/me", key=key), 401, "invalid_client")
    assert Event.objects.filter(kind=AGENT_REVOKED).count() == 1


def test_RV_7_at_revoke_every_token_is_200(
    agent: AgentClient, bob: Human, provider_and_secret: Provider, now: datetime
) -> None:
    grant = approved(agent, provider_and_secret[0], now=now)
    token, expired = (issue(agent, grant).json()["access_token"] for _ in range(2))
    bobs = enrolled(bob, now=now)
    at_bobs = approved(enrolled(bob, now=now), provider_and_secret[0], now=now)
    assert at_bobs.pk
    answers = [revoke(agent, token), revoke(agent, token), revoke_as(provider_and_secret, token)]
    answers += [
        revoke(agent, "unknown"),
        revoke(agent, changed_signature(token)),
        revoke(bobs, token),
    ]
    with time_machine.travel(now + timedelta(seconds=901)):
        answers += [revoke(agent, expired), revoke(agent, expired)]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, b"")}
    assert revocations() == 2


def test_RV_8_a_token_that_is_not_ones_own_is_an_event_that_tells_nothing(
    agent: AgentClient, bob: Human, provider_and_secret: Provider, now: datetime
) -> None:
    """An agent reads its own events: foreign and unknown ids must look alike there too."""
    token = issue(agent, approved(agent, provider_and_secret[0], now=now)).json()["access_token"]
    bobs = enrolled(bob, now=now)
    stranger = create_service_provider(
        name="Stranger", audience="https://stranger.example", actor=TESTER, now=now
    )
    for ask, who in (
        (lambda text: revoke(bobs, text), "agent"),
        (_as(stranger), "service_provider"),
    ):
        for text in (token, "unknown"):
            assert ask(text).status_code == 200
        theirs, unknown = Event.objects.filter(
            kind="audit.request.refused", actor_kind=who
        ).order_by("id")
        assert _shown(theirs) == _shown(unknown)
        assert (theirs.outcome, theirs.reason) == ("denied", "not_found")
        assert theirs.data == {"error": "not_found", "route": "POST v1/revoke"}
    assert Token.objects.get().revoked_at is None


def _as(provider: Provider) -> Callable[[str], Any]:
    return lambda text: revoke_as(provider, text)


def _shown(event: Event) -> dict[str, Any]:
    hidden = {"id", "at", "salt", "request_id"}
    return {
        name: value for name, value in vars(event).items() if name not in hidden and name[0] != "_"
    }


def test_RV_8_anothers_grant_is_an_event(
    agent: AgentClient, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    theirs = approved(enrolled(bob, now=now), service_provider, now=now)
    assert_refused(revoke_grant(agent, theirs.pk), 404, "not_found")
    event = Event.objects.get(kind="audit.request.refused")
    assert (event.actor_id, event.reason) == (str(agent.agent().pk), "not_found")
    # The event belongs to the caller that tried.
    assert (event.agent_id, event.grant_id) == (agent.agent().pk, None)


# Where the write fails, and what is revoked nevertheless: after the commit only the answer is lost.
FAULTS = {
    "registry.services.tokens.publish_change": False,
    "registry.services.tokens.record": False,
    "registry.services.tokens.token_state": False,
    "registry.services.grants.publish_change": False,
    "registry.services.grants.record": False,
    "registry.services.agents.publish_change": False,
    "registry.services.agents.record": False,
    "registry.api.tokens.fault_point": True,
    "registry.api.grants.fault_point": True,
}


@pytest.mark.parametrize("error", [OperationalError, InterfaceError])
@pytest.mark.parametrize("place", list(FAULTS))
def test_RV_11_unwritten_or_unreported_revocation_is_503_and_logged(
    place: str,
    error: type[Exception],
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant = approved(agent, service_provider, now=now)
    token = issue(agent, grant).json()["access_token"]
    acts: dict[str, Callable[[], Any]] = {
        "tokens": lambda: revoke(agent, token),
        "grants": lambda: revoke_grant(agent, grant.pk),
        "agents": lambda: agent.call("DELETE", "/v1/agents/me"),
    }
    act = acts[place.split(".")[2]]

    def fails(*_args: object, **_kwargs: object) -> None:
        raise error("disk full at database.internal")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(place, fails)
        answer = act()
    assert_refused(answer, 503, "temporarily_unavailable")
    assert b"disk" not in answer.content
    assert answer["Retry-After"]
    assert any("the database did not answer" in line for line in caplog.messages)
    ended = (
        Token.objects.get().revoked_at is not None
        or Grant.objects.get().status == "revoked"
        or Agent.objects.get().status == "revoked"
    )
    assert ended == FAULTS[place]
    # A retry succeeds, and acts only once.
    assert act().status_code in {200, 204}
    assert Event.objects.filter(kind__endswith=".revoked").count() == 1
