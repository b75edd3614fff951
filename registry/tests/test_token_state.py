"""token_state: what a token permits while things change around it, read at use."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidTokenError
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.agents import resume_agent, revoke_agent, suspend_agent
from registry.services.grants import resume_grant, revoke_grant, suspend_grant
from registry.services.humans import resume_human, suspend_human
from registry.services.service_providers import (
    create_service_provider,
    resume_service_provider,
    revoke_service_provider,
    suspend_service_provider,
)
from registry.services.token_state import token_state
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approved,
    issue,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
Provider = tuple[ServiceProvider, str]


def issued(
    client: AgentClient, service_provider: ServiceProvider, now: datetime
) -> tuple[Grant, str]:
    grant = approved(client, service_provider, now=now)
    issue(client, grant)
    return grant, Token.objects.latest("id").jti


def test_RV_2_each_level_refuses_every_dependent_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, jti = issued(agent, service_provider, now)

    def reason() -> str | None:
        return token_state(jti).refusal(now)

    assert reason() is None
    row = agent.agent()
    steps: list[tuple[Callable[..., None], dict[str, Any], str | None]] = [
        (suspend_human, {"human": alice}, "human_inactive"),
        (resume_human, {"human": alice}, None),
        (suspend_agent, {"agent": row}, "agent_inactive"),
        (resume_agent, {"agent": row}, None),
        (suspend_service_provider, {"service_provider": service_provider}, "grant_inactive"),
        (resume_service_provider, {"service_provider": service_provider}, None),
        (suspend_grant, {"grant": grant}, "grant_inactive"),
        # The version increased: an earlier token stays refused.
        (resume_grant, {"grant": grant}, "grant_inactive"),
    ]
    for act, arguments, expected in steps:
        act(**arguments, actor=TESTER, now=now)
        assert reason() == expected, act.__name__
    _, jti = issued(agent, create_another(now), now)
    assert reason() is None
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert reason() == "agent_inactive"


def create_another(now: datetime) -> ServiceProvider:
    return create_service_provider(
        name="Another",
        audience="https://another.example",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )[0]


def test_a_revoked_service_provider_and_grant_refuse_for_good(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, jti = issued(agent, service_provider, now)
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert token_state(jti).refusal(now) == "grant_inactive"
    revoke_grant(grant=grant, actor=TESTER, now=now)
    assert token_state(jti).refusal(now) == "grant_inactive"


def test_the_end_of_grant_and_manifest_count_from_their_second(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, jti = issued(agent, service_provider, now)
    assert grant.valid_until is not None
    assert token_state(jti).refusal(grant.valid_until) == "grant_inactive"
    Agent.objects.update(expires_at=now + timedelta(seconds=1))
    assert token_state(jti).refusal(now) is None
    assert token_state(jti).refusal(now + timedelta(seconds=1)) == "agent_inactive"


def test_a_token_bound_to_a_former_key_is_revoked(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    _, jti = issued(agent, service_provider, now)
    Agent.objects.update(jkt="x" * 43)
    assert token_state(jti).refusal(now) == "revoked"


def test_an_unknown_token_is_unknown(db: None) -> None:
    with pytest.raises(InvalidTokenError) as caught:
        token_state("never issued")
    assert caught.value.reason == "unknown"


def test_state_is_one_query(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    django_assert_num_queries: Any,
) -> None:
    _, jti = issued(agent, service_provider, now)
    with django_assert_num_queries(1):
        token_state(jti).refusal(now)
