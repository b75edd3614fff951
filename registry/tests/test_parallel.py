"""Concurrent calls: limits and one-winner rules hold on SQLite and on PostgreSQL."""

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from agentauth.protocol.agent_manifest import VerifiedManifest
from agentauth.protocol.errors import AgentAuthError
from audit.models import Event
from registry.models import Agent, Grant, Human, IdempotencyRecord, ServiceProvider, Token
from registry.services import agent_manifests
from registry.services.agent_claims import check_claim_code
from registry.services.agents import suspend_agent
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grants import deny_grant
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, approve, approved, basic, enrolled, pending
from registry.tests.describing import WORDS

pytestmark = pytest.mark.django_db(transaction=True)
MANY = 50
# A lock that a busy machine does not get in time is a 503 to retry: this often before it counts.
TRIES = 5
TRY_AGAIN = 503


def at_once(acts: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run all acts in threads that start together, each with its own database connection."""
    start, results = threading.Barrier(len(acts)), [None] * len(acts)

    def run(index: int, act: Callable[[], Any]) -> None:
        try:
            start.wait()
            for _ in range(TRIES):
                results[index] = answer = act()
                if getattr(answer, "status_code", None) != TRY_AGAIN:
                    break
        except AgentAuthError as error:
            results[index] = error.code  # type: ignore[call-overload]
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=pair) for pair in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def calendar(number: int) -> dict[str, Any]:
    return {"type": "read", "resource": f"calendar/{number}"}


def test_OG_11_fifty_identical_requests_make_one_row_and_equal_answers(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    answers = at_once([lambda: agent.ask(service_provider)] * MANY)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: MANY - 1}
    assert len({answer.content for answer in answers}) == 1
    assert Grant.objects.count() == 1
    assert Event.objects.filter(kind="registry.grant.requested").count() == 1


def test_AP_30_of_fifty_different_requests_exactly_five_are_made(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    acts = [partial(agent.ask, service_provider, capabilities=[calendar(n)]) for n in range(MANY)]
    statuses = Counter(answer.status_code for answer in at_once(acts))
    assert statuses == {201: 5, 429: MANY - 5}
    assert Grant.objects.count() == 5


def test_AP_29_the_humans_limit_holds_for_agents_that_ask_in_parallel(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    agents = [enrolled(alice, now=now) for _ in range(6)]
    acts = [
        partial(client.ask, service_provider, capabilities=[calendar(number)])
        for client in agents
        for number in range(5)
    ]
    statuses = Counter(answer.status_code for answer in at_once(acts))
    assert statuses == {201: 20, 429: 10}


def test_one_key_registered_twenty_times_at_once_is_one_agent() -> None:
    client = AgentClient()
    manifest = client.manifest()
    answers = at_once([lambda: client.register(manifest=manifest)] * 20)
    assert Counter(answer.status_code for answer in answers) == {201: 1, 200: 19}
    assert len({answer.json()["claim_url"] for answer in answers}) == 1
    assert Agent.objects.count() == 1


def test_DJ_24_a_code_used_twice_at_once_enrols_one_agent(alice: Human, now: datetime) -> None:
    _, code = create_enrolment_code(human=alice, actor=TESTER, now=now)
    clients = [AgentClient() for _ in range(10)]
    answers = at_once([partial(client.register, code) for client in clients])
    assert Counter(answer.status_code for answer in answers) == {201: 1, 400: 9}
    assert Agent.objects.count() == 1


def test_one_idempotency_key_used_twenty_times_at_once_acts_once(
    agent: AgentClient, service_provider: ServiceProvider
) -> None:
    answers = at_once([lambda: agent.ask(service_provider, key="same")] * 20)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert IdempotencyRecord.objects.count() == 1


@pytest.mark.usefixtures("token_key")
def test_one_token_call_repeated_at_once_is_one_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    body = {"grant_id": str(grant.id)}
    answers = at_once([lambda: agent.call("POST", "/v1/tokens", body, key="same")] * 10)
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.json()["access_token"].split(".")[1] for answer in answers}) == 1
    assert Token.objects.count() == 1


def test_DN_7_one_proof_used_fifty_times_at_once_passes_once(agent: AgentClient) -> None:
    proof = agent.proof("GET", "/v1/agents/me")
    answers = at_once([lambda: agent.call("GET", "/v1/agents/me", proof=proof)] * MANY)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 401: MANY - 1}


def test_AP_7_of_many_decisions_at_once_one_counts(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)

    def fresh() -> Grant:
        return Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)

    seen = [fresh() for _ in range(20)]
    acts: list[Callable[[], Any]] = [partial(approve, g, alice, now=now) for g in seen[:10]]
    acts += [
        partial(deny_grant, grant=g, human=alice, reason="", actor=TESTER, now=now)
        for g in seen[10:]
    ]
    results = at_once(acts)
    assert results.count("grant_changed") == 19
    decided = Event.objects.filter(kind__in=["registry.grant.approved", "registry.grant.denied"])
    assert decided.count() == 1
    assert fresh().status in decided.get().kind


def test_DJ_24_of_wrong_claim_codes_at_once_five_are_judged(now: datetime) -> None:
    """However many guesses arrive together, the fifth ends the link for the rest."""
    stray = AgentClient()
    assert stray.register().status_code == 201
    agent = stray.agent()
    guess = partial(check_claim_code, agent=agent, actor=TESTER, now=now)
    answers = Counter(
        at_once([partial(guess, code=f"WRONG0{number:02}") for number in range(MANY)])
    )
    assert answers == {"invalid_request": 5, "expired": MANY - 5}
    assert stray.agent().claim_failures == 5


def test_suspension_during_a_renewal_is_kept(
    agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The renewal of an expired agent has read its row when the suspension begins."""
    Agent.objects.update(status="expired")
    act = partial(suspend_agent, agent=agent.agent(), actor=TESTER, now=now)
    suspension = threading.Thread(target=at_once, args=([act],))

    def suspended_meanwhile(_manifest: VerifiedManifest) -> None:
        suspension.start()
        # It waits for the row. Without that lock it would have finished by now.
        suspension.join(timeout=0.3)

    monkeypatch.setattr(agent_manifests, "check_origin", suspended_meanwhile)
    assert agent.replace().status_code == 200
    suspension.join()
    assert agent.agent().status == "suspended"


def test_same_catalogue_at_once_is_created_once(now: datetime) -> None:
    provider, secret = create_service_provider(
        name="Acme", audience="http://127.0.0.1:8001", actor=TESTER, now=now
    )

    def propose() -> Any:
        return Client().post(
            "/v1/catalogue",
            {"catalogue": WORDS},
            content_type="application/json",
            headers=basic(provider, secret),
        )

    statuses = Counter(answer.status_code for answer in at_once([propose] * 8))
    assert statuses == {201: 1, 200: 7}
