"""Server nonces at the registry: required where a provider wants them, never another's or old."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import time_machine

from audit.models import Event
from registry.models import Grant, Human, ServiceProvider, SpentProof, Token
from registry.services.nonces import NONCE_BYTES, REGISTRY, STEP_SECONDS, nonces_of
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, approved, assert_refused, enrolled, issue

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
STEP = timedelta(seconds=STEP_SECONDS)
# Well after every fixture's rows were made, in the middle of a step.
NOON = datetime.fromtimestamp(
    (int(datetime.now(UTC).timestamp()) // STEP_SECONDS + 2.5) * STEP_SECONDS, UTC
)


@pytest.fixture
def strict_grant(agent: AgentClient, now: datetime) -> Grant:
    """The agent's approved grant at a service provider that requires nonces."""
    provider, _ = create_service_provider(
        name="Strict",
        audience="http://127.0.0.1:8003",
        allowed=["read:calendar"],
        require_nonce=True,
        actor=TESTER,
        now=now,
    )
    return approved(agent, provider, now=now)


def asked_with(agent: AgentClient, grant: Grant, nonce: str | None, key: str | None = None) -> Any:
    body = b'{"grant_id": "%s"}' % str(grant.pk).encode()
    proof = agent.proof("POST", "/v1/tokens", body, nonce=nonce)
    return agent.call("POST", "/v1/tokens", body, proof=proof, key=key)


def look(agent: AgentClient, nonce: str | None, path: str = "/v1/agents/me") -> Any:
    return agent.call("GET", path, proof=agent.proof("GET", path, nonce=nonce))


def test_DN_1_a_token_for_a_strict_service_provider_needs_a_nonce(
    agent: AgentClient, strict_grant: Grant
) -> None:
    response = asked_with(agent, strict_grant, None)
    body = assert_refused(response, 400, "use_dpop_nonce")
    assert body.keys() == {"error", "error_description"}
    # One header with one value: Django's client would join two lines with a comma.
    nonce = response["DPoP-Nonce"]
    assert len(nonce) == 22
    assert "WWW-Authenticate" not in response
    assert not Token.objects.exists()
    event = Event.objects.get(outcome="denied")
    assert (event.reason, event.agent_id) == ("use_dpop_nonce", strict_grant.agent_id)
    assert nonce not in str(event.data)
    good = asked_with(agent, strict_grant, nonce)
    assert (good.status_code, good["Cache-Control"]) == (201, "no-store")
    assert "DPoP-Nonce" not in good


def test_a_stored_token_call_is_not_repeated_without_a_nonce(
    agent: AgentClient, strict_grant: Grant
) -> None:
    nonce = asked_with(agent, strict_grant, None, key="k")["DPoP-Nonce"]
    assert asked_with(agent, strict_grant, nonce, key="k").status_code == 201
    assert_refused(asked_with(agent, strict_grant, None, key="k"), 400, "use_dpop_nonce")
    assert asked_with(agent, strict_grant, nonce, key="k").status_code == 201
    assert Token.objects.count() == 1


def test_other_or_unknown_grant_requires_no_nonce(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    assert issue(agent, approved(agent, service_provider, now=now)).status_code == 201
    response = agent.call("POST", "/v1/tokens", {"grant_id": "nonsense"})
    assert_refused(response, 400, "invalid_grant")
    assert "DPoP-Nonce" not in response


def test_anothers_strict_grant_says_nothing_of_its_service_provider(
    bob: Human, strict_grant: Grant, now: datetime
) -> None:
    response = issue(enrolled(bob, now=now), strict_grant)
    assert_refused(response, 400, "invalid_grant")
    assert "DPoP-Nonce" not in response


@pytest.mark.parametrize(
    ("shift", "accepted", "fresh"),
    [(-2, False, True), (-1, True, True), (0, True, False), (1, True, False), (2, False, True)],
)
def test_DN_3_previous_current_and_next_nonce_pass_oldest_is_renewed(
    agent: AgentClient, shift: int, accepted: bool, fresh: bool
) -> None:
    with time_machine.travel(NOON, tick=False):
        response = look(agent, nonces_of(REGISTRY, NOON + shift * STEP).current)
        if accepted:
            assert response.status_code == 200
        else:
            assert_refused(response, 401, "use_dpop_nonce")
            assert response["WWW-Authenticate"].startswith('DPoP error="use_dpop_nonce", algs=')
        assert response.get("DPoP-Nonce") == (nonces_of(REGISTRY, NOON).current if fresh else None)


def test_DN_3_a_refusal_for_another_reason_brings_it_as_well(agent: AgentClient) -> None:
    with time_machine.travel(NOON, tick=False):
        nonces = nonces_of(REGISTRY, NOON)
        response = look(agent, nonces.previous, "/v1/grants/unknown")
        assert_refused(response, 404, "not_found")
        assert response["DPoP-Nonce"] == nonces.current
        # An unregistered key: the proof itself was valid.
        response = look(AgentClient(), nonces.previous)
        assert_refused(response, 401, "invalid_client")
        assert response["DPoP-Nonce"] == nonces.current


def test_a_refused_nonce_spends_nothing_and_its_proof_is_never_good(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    with time_machine.travel(NOON, tick=False) as clock:
        path = "/v1/agents/me"
        old = nonces_of(REGISTRY, NOON - 2 * STEP).current
        proof = agent.proof("GET", path, nonce=old)
        for _ in range(3):
            assert_refused(agent.call("GET", path, proof=proof), 401, "use_dpop_nonce")
            clock.shift(25)
        assert not SpentProof.objects.exists()


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/v1/agents", 400),
        ("POST", "/v1/tokens", 400),
        ("GET", "/v1/agents/me", 401),
        ("DELETE", "/v1/agents/me", 401),
        ("GET", "/v1/grants", 401),
        ("POST", "/v1/grants", 401),
        ("POST", "/v1/revoke", 401),
        ("GET", "/v1/service-providers/acme-calendar", 401),
        ("GET", "/v1/confirmations/0192f1c8-0000-7000-8000-000000000001", 401),
        ("GET", "/v1/audit/events", 401),
        ("GET", "/v1/grants/0192f1c8-0000-7000-8000-000000000001/receipt", 401),
    ],
)
def test_DP_100_no_endpoint_takes_a_nonce_that_is_not_the_registrys(
    agent: AgentClient, service_provider: ServiceProvider, method: str, path: str, status: int
) -> None:
    with time_machine.travel(NOON, tick=False):
        # A service provider's nonce is refused like an invented one.
        for foreign in (
            "stale",
            "ü",
            "x" * 4000,
            nonces_of(str(service_provider.pk), NOON).current,
        ):
            response = agent.call(method, path, proof=agent.proof(method, path, nonce=foreign))
            assert_refused(response, status, "use_dpop_nonce")
            assert response["DPoP-Nonce"] == nonces_of(REGISTRY, NOON).current


def test_a_nonce_is_long_and_its_servers_and_its_times_alone() -> None:
    assert NONCE_BYTES * 8 >= 128
    every = [
        nonce
        for server in (REGISTRY, "a", "b")
        for step in range(0, 300, 3)
        for nonce in nonces_of(server, NOON + step * STEP).accepted
    ]
    assert len(set(every)) == len(every)
    assert all(len(nonce) == 22 for nonce in every)


def test_a_nonce_lives_as_long_as_it_says() -> None:
    for second in range(STEP_SECONDS):
        given_at = NOON + timedelta(seconds=second)
        nonce = nonces_of(REGISTRY, given_at).current
        assert nonce in nonces_of(REGISTRY, given_at + STEP).accepted
        assert nonce in nonces_of(REGISTRY, given_at - STEP).accepted
        assert nonce not in nonces_of(REGISTRY, given_at + 2 * STEP).accepted


def test_which_service_providers_ask_for_nonces_can_be_read(
    agent: AgentClient, strict_grant: Grant, service_provider: ServiceProvider
) -> None:
    assert look(agent, None, "/v1/service-providers/strict").json()["require_nonce"] is True
    assert look(agent, None, "/v1/service-providers/acme-calendar").json()["require_nonce"] is False
    made = Event.objects.filter(kind="registry.service_provider.created")
    assert sorted(event.data["require_nonce"] for event in made) == [False, True]
