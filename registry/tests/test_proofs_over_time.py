"""Proofs at `/v1/tokens` and `/v1/grants`: their key, their URL, and the allowed clock error."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from registry.models import Grant, Human, ServiceProvider, SpentProof, Token
from registry.tests.cast import (
    READ_CALENDAR,
    AgentClient,
    approved,
    assert_refused,
    enrolled,
    issue,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)

# Seconds by which the proof's time is before (−) or after (+) the true time, on a host whose clock
# is off by `host`. The host's own clock counts: at most 60 s either way.
TABLE = [
    *[(0, edge, abs(edge) <= 60) for edge in (-3600, -61, -60, -10, 0, 10, 60, 61, 3600)],
    *[(30, edge, -30 <= edge <= 90) for edge in (-60, -31, -30, -10, 0, 10, 60, 90, 91)],
    *[(-30, edge, -90 <= edge <= 30) for edge in (-91, -90, -60, -10, 0, 10, 30, 31, 60)],
]


@pytest.mark.parametrize(("host", "edge", "accepted"), TABLE)
def test_DN_13_sixty_seconds_either_way_by_the_hosts_own_clock(
    alice: Human, host: int, edge: int, accepted: bool
) -> None:
    with time_machine.travel(NOON + timedelta(seconds=host), tick=False):
        agent = enrolled(alice, now=datetime.now(UTC))
        proof = agent.proof("GET", "/v1/agents/me", iat=int(NOON.timestamp()) + edge)
        response = agent.call("GET", "/v1/agents/me", proof=proof)
    if accepted:
        assert response.status_code == 200
    else:
        assert assert_refused(response, 401, "invalid_dpop_proof")["reason"] == "iat"


@pytest.fixture
def grant(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    return approved(agent, service_provider, now=now)


def test_DN_17_a_grant_is_bound_to_its_agents_key(
    grant: Grant, alice: Human, now: datetime
) -> None:
    """Another agent's key, even of the same owner, and an unregistered key."""
    assert_refused(issue(enrolled(alice, now=now), grant), 400, "invalid_grant")
    assert_refused(issue(AgentClient(), grant), 401, "invalid_client")
    assert not Token.objects.exists()


def test_DN_18_no_token_is_issued_without_a_proof(agent: AgentClient, grant: Grant) -> None:
    assert_refused(issue(agent, grant, proof=None), 400, "invalid_dpop_proof")
    assert not Token.objects.exists()


@pytest.mark.parametrize("own", [True, False])
def test_DN_19_a_grants_key_is_the_proofs_and_is_not_named_in_the_body(
    agent: AgentClient, service_provider: ServiceProvider, own: bool
) -> None:
    named = agent.jkt if own else AgentClient().jkt
    assert_refused(agent.ask(service_provider, dpop_jkt=named), 400, "invalid_request")
    assert not Grant.objects.exists()


def test_DN_19_a_manifest_is_registered_by_its_own_key_alone(agent: AgentClient) -> None:
    other = AgentClient()
    body = json.dumps({"manifest": other.manifest()}).encode()
    response = agent.call("POST", "/v1/agents", body, proof=agent.proof("POST", "/v1/agents", body))
    assert_refused(response, 400, "invalid_dpop_proof")


def test_DN_8_a_proof_for_a_service_provider_is_for_no_url_of_the_registry(
    agent: AgentClient, grant: Grant, service_provider: ServiceProvider
) -> None:
    """Refused for its `htu` before the replay check; once used, the `jti` is spent for all URLs."""
    token = issue(agent, grant).json()["access_token"]
    at_provider: dict[str, Any] = {"url": f"{service_provider.audience}/x", "access_token": token}
    proof = agent.proof("POST", "/x", jti="one", **at_provider)
    for _ in range(2):
        answer = assert_refused(issue(agent, grant, proof=proof), 400, "invalid_dpop_proof")
        assert answer["reason"] == "url"
    assert SpentProof.objects.count() == 1
    body = {"service_provider": service_provider.slug, "capabilities": [READ_CALENDAR]}
    raw = json.dumps(body).encode()
    first = agent.proof("POST", "/v1/grants", raw, jti="one")
    assert agent.call("POST", "/v1/grants", raw, proof=first).status_code == 201
    answer = assert_refused(
        agent.call("GET", "/v1/agents/me", proof=agent.proof("GET", "/v1/agents/me", jti="one")),
        401,
        "invalid_dpop_proof",
    )
    assert answer["reason"] == "replayed"
