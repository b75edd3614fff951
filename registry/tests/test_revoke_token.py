"""POST /v1/revoke (RFC 7009): by the agent or the service provider, and no other caller."""

import json
from datetime import datetime
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from agentauth.protocol.jose import sign_compact
from audit.models import Event
from registry.models import Human, ServiceProvider, Token
from registry.services.agents import suspend_agent
from registry.services.service_providers import (
    create_service_provider,
)
from registry.services.token_state import token_state
from registry.tests.cast import (
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    basic,
    enrolled,
    issue,
)
from tests.forging import changed_signature

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
Provider = tuple[ServiceProvider, str]


def revoke(client: AgentClient, token: str) -> Any:
    body = f"token={token}&token_type_hint=access_token".encode()
    return client.client.generic(
        "POST",
        "/v1/revoke",
        body,
        content_type="application/x-www-form-urlencoded",
        headers={"DPoP": client.proof("POST", "/v1/revoke", body)},
    )


def revoke_as(provider: Provider, token: str, **more: str) -> Any:
    return Client().post(
        "/v1/revoke",
        f"token={token}",
        content_type="application/x-www-form-urlencoded",
        headers=basic(*provider) | more,
    )


def test_an_agent_revokes_its_own_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    token = issue(agent, approved(agent, service_provider, now=now)).json()["access_token"]
    for _ in range(2):
        response = revoke(agent, token)
        assert (response.status_code, response.content) == (200, b"")
    assert token_state(Token.objects.get().jti).refusal(now) == "revoked"
    assert Event.objects.filter(kind="registry.token.revoked").count() == 1


def test_a_service_provider_revokes_a_token_of_its_audience(
    agent: AgentClient, provider_and_secret: Provider, now: datetime
) -> None:
    token = issue(agent, approved(agent, provider_and_secret[0], now=now)).json()["access_token"]
    assert revoke_as(provider_and_secret, token).status_code == 200
    event = Event.objects.get(kind="registry.token.revoked")
    assert (event.actor_kind, event.actor_id) == (
        "service_provider",
        str(provider_and_secret[0].pk),
    )


def test_OA_24_RV_8_revoking_foreign_token_looks_and_acts_like_unknown(
    agent: AgentClient, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    token = issue(agent, approved(agent, service_provider, now=now)).json()["access_token"]
    stranger = create_service_provider(
        name="Stranger", audience="https://stranger.example", actor=TESTER, now=now
    )
    bobs, jti = enrolled(bob, now=now), Token.objects.get().jti
    forged = changed_signature(token)
    answers = [
        revoke(bobs, token),
        revoke_as(stranger, token),
        revoke(agent, "x"),
        revoke(agent, jti),
    ]
    # In our format, with a kid that is no key of ours.
    foreign = sign_compact({"jti": jti}, agent.signer, typ="at+jwt", header={"kid": agent.jkt})
    answers += [revoke(agent, forged), revoke(agent, foreign)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(200, b"")] * 6
    assert token_state(jti).refusal(now) is None


def test_revocation_needs_a_caller_and_one_token(
    agent: AgentClient, provider_and_secret: Provider
) -> None:
    form = "application/x-www-form-urlencoded"
    assert_refused(Client().post("/v1/revoke", "token=x", content_type=form), 401, "invalid_client")
    wrong = (provider_and_secret[0], "wrong")
    response = revoke_as(wrong, "x")
    assert_refused(response, 401, "invalid_client")
    assert response["WWW-Authenticate"].startswith("Basic")
    assert_refused(revoke_as(provider_and_secret, "x&token=y"), 400, "invalid_request")
    assert_refused(revoke_as(provider_and_secret, ""), 400, "invalid_request")
    assert_refused(
        Client().post(
            "/v1/revoke?token=x", "token=x", content_type=form, headers=basic(*provider_and_secret)
        ),
        400,
        "invalid_request",
    )
    proof = agent.proof("POST", "/v1/revoke", b"token=x")
    assert_refused(revoke_as(provider_and_secret, "x", DPoP=proof), 400, "invalid_request")


def test_a_suspended_agent_may_still_revoke_its_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    token = issue(agent, approved(agent, service_provider, now=now)).json()["access_token"]
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert revoke(agent, token).status_code == 200
    assert Token.objects.get().revoked_at is not None


def test_RV_11_an_event_that_cannot_be_written_stops_the_revocation(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from django.db import OperationalError

    token = issue(agent, approved(agent, service_provider, now=now)).json()["access_token"]

    def fails(**_kwargs: Any) -> None:
        assert transaction.get_connection().in_atomic_block
        raise OperationalError("disk full")

    monkeypatch.setattr("registry.services.tokens.record", fails)
    answer = assert_refused(revoke(agent, token), 503, "temporarily_unavailable")
    assert "disk" not in json.dumps(answer)
    assert Token.objects.get().revoked_at is None


def test_U1_revocation_without_a_body_is_a_400_not_a_server_error(
    agent: AgentClient, provider_and_secret: Provider
) -> None:
    assert_refused(agent.call("POST", "/v1/revoke"), 400, "invalid_request")
    bare = Client().generic("POST", "/v1/revoke", headers=basic(*provider_and_secret))
    assert_refused(bare, 400, "invalid_request")
