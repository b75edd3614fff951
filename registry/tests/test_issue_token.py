"""POST /v1/tokens: what a token says, which callers get one, and what a repeated call gets."""

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.conf import settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.token import verify_access_token
from audit.models import Event
from kms.services import verification_keys
from kms.tests.test_signing_rate import Clock, throttled_at
from registry.models import (
    Agent,
    Grant,
    Human,
    IdempotencyRecord,
    ServiceProvider,
    SpentProof,
    Token,
)
from registry.services.agents import suspend_agent
from registry.services.grant_requests import withdraw_grant
from registry.services.grants import deny_grant, revoke_grant, suspend_grant
from registry.services.humans import suspend_human
from registry.services.service_providers import (
    create_service_provider,
    resume_service_provider,
    suspend_service_provider,
)
from registry.services.tokens import revoke_token
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    enrolled,
    issue,
    pending,
)

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
Provider = tuple[ServiceProvider, str]


def claims_of(token: str, audience: str, now: datetime) -> dict[str, Any]:
    return dict(
        verify_access_token(
            token,
            keys=verification_keys(purpose="token", now=now),
            expected_issuer=settings.ISSUER,
            expected_audience=audience,
            now=int(now.timestamp()) + 1,
        ).claims
    )


def test_a_token_says_what_the_grant_says(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY])
    response = issue(agent, grant)
    body = response.json()
    assert response.status_code == 201
    assert response["Cache-Control"] == "no-store"
    assert body.keys() == {"access_token", "token_type", "expires_in", "grant_id"}
    assert (body["token_type"], body["expires_in"], body["grant_id"]) == (
        "DPoP",
        900,
        str(grant.id),
    )
    claims = claims_of(body["access_token"], service_provider.audience, now)
    assert claims["cnf"] == {"jkt": agent.jkt}
    assert claims["client_id"] == str(grant.agent_id)
    assert (claims["grant_id"], claims["grant_version"]) == (str(grant.id), 1)
    assert claims["authorization_details"][0]["capabilities"] == [READ_CALENDAR, PAY]
    assert claims["scope"] == "read:calendar"
    assert "verify" not in claims
    row = Token.objects.get()
    assert row.jti == claims["jti"]
    event = Event.objects.get(kind="registry.token.issued")
    assert event.token_jti == row.jti
    assert body["access_token"].split(".")[2] not in json.dumps([event.data, row.claims])


def test_subject_differs_between_providers_and_is_stable_at_one(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    other, _ = create_service_provider(
        name="Other",
        audience="https://other.example",
        allowed=["read:calendar"],
        actor=TESTER,
        now=now,
    )
    second = enrolled(alice, now=now)
    grants = [approved(agent, service_provider, now=now), approved(agent, other, now=now)]
    issue(agent, grants[0])
    issue(agent, grants[1])
    issue(second, approved(second, service_provider, now=now))
    subjects = [
        claims["sub"] for claims in Token.objects.order_by("id").values_list("claims", flat=True)
    ]
    assert subjects[0] == subjects[2] != subjects[1]
    assert str(alice.pk) not in subjects


@pytest.mark.parametrize(
    ("envelope", "seconds", "life"),
    [
        ({}, 30 * 86_400, 900),
        ({"max_session_seconds": 60}, 86_400, 60),
        ({}, 600, 600),
        ({"max_uses": 1}, 86_400, 900),
    ],
)
def test_RV_12_a_token_lives_as_short_as_its_shortest_limit(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    envelope: dict[str, Any],
    seconds: int,
    life: int,
) -> None:
    grant = approved(agent, service_provider, now=now, envelope=envelope, seconds=seconds)
    body = issue(agent, grant).json()
    claims = claims_of(body["access_token"], service_provider.audience, now)
    assert life - 5 <= claims["exp"] - claims["iat"] <= life
    assert ("verify" in claims) == bool(envelope)


def test_a_token_never_outlives_the_manifest(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    client = enrolled(alice, now=now)
    grant = approved(client, service_provider, now=now)
    Agent.objects.update(expires_at=now + timedelta(seconds=100))
    assert issue(client, grant).json()["expires_in"] <= 100


@pytest.mark.parametrize(
    "extra",
    [
        {"capabilities": [PAY]},
        {"human_id": "mallory"},
        {"service_provider": "acme"},
        {"envelope": {}},
        {"lifetime_seconds": 90_000},
        {"scope": "read:mail"},
    ],
)
def test_OG_2_AP_37_the_caller_adds_nothing_to_a_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, extra: dict[str, Any]
) -> None:
    grant = approved(agent, service_provider, now=now)
    body = {"grant_id": str(grant.id), **extra}
    assert_refused(agent.call("POST", "/v1/tokens", body), 400, "invalid_request")
    assert not Token.objects.exists()


def test_OG_2_a_looser_spelling_of_the_request_gets_no_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """A request is read strictly: no other case, list, query, or second member of a name."""
    good, other = (str(approved(agent, service_provider, now=now).id) for _ in range(2))
    path = "/v1/tokens"
    for loose in (
        good.upper(),
        f" {good}",
        f"{{{good}}}",
        good.replace("-", ""),
        f"urn:uuid:{good}",
    ):
        assert_refused(agent.call("POST", path, {"grant_id": loose}), 400, "invalid_grant")
    for odd in ([good], {"id": good}, None, 1, True, "", "x" * 256):
        assert_refused(agent.call("POST", path, {"grant_id": odd}), 400, "invalid_request")
    twice = f'{{"grant_id": "{good}", "grant_id": "{other}"}}'.encode()
    for body in (
        twice,
        {},
        [],
        [{"grant_id": good}],
        {"grantId": good},
        {"grant_id": good, "grant_ids": []},
    ):
        assert_refused(agent.call("POST", path, body), 400, "invalid_request")
    assert_refused(agent.call("POST", path, {}, query=f"?grant_id={good}"), 400, "invalid_request")
    form = f"grant_id={good}".encode()
    headers = {"DPoP": agent.proof("POST", path, form)}
    answer = agent.client.generic(
        "POST", path, form, content_type="application/x-www-form-urlencoded", headers=headers
    )
    assert_refused(answer, 415, "unsupported_media_type")
    assert not Token.objects.exists()


def test_OG_2_no_token_without_an_active_grant_and_one_answer_for_all(
    agent: AgentClient, alice: Human, bob: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    def new() -> tuple[AgentClient, Grant]:
        client = enrolled(alice, now=now)
        return client, approved(client, service_provider, now=now)

    answers = [
        assert_refused(
            agent.call("POST", "/v1/tokens", {"grant_id": "nonsense"}), 400, "invalid_grant"
        ),
        assert_refused(
            issue(agent, pending(agent, service_provider, now=now)), 400, "invalid_grant"
        ),
    ]
    client, grant = new()
    answers.append(assert_refused(issue(enrolled(bob, now=now), grant), 400, "invalid_grant"))
    revoke_grant(grant=grant, actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client, grant = new()
    suspend_grant(grant=grant, actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client, grant = new()
    Grant.objects.filter(pk=grant.pk).update(valid_until=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client, grant = new()
    suspend_agent(agent=client.agent(), actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client = enrolled(alice, now=now)
    grant = pending(client, service_provider, now=now)
    deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client = enrolled(alice, now=now)
    grant = pending(client, service_provider, now=now)
    withdraw_grant(grant=grant, actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    client, grant = new()
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    resume_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    suspend_human(human=alice, actor=TESTER, now=now)
    answers.append(assert_refused(issue(client, grant), 400, "invalid_grant"))
    assert all(answer == answers[0] for answer in answers)
    assert not Token.objects.exists()


def test_bad_proofs_are_bad_requests_here(agent: AgentClient) -> None:
    assert_refused(
        agent.call("POST", "/v1/tokens", {"grant_id": "x"}, proof=None), 400, "invalid_dpop_proof"
    )
    assert_refused(
        agent.call("POST", "/v1/tokens", {"grant_id": "x"}, proof="x.y.z"),
        400,
        "invalid_dpop_proof",
    )


def test_no_signature_no_token_but_its_intent_is_on_record(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = approved(agent, service_provider, now=now)
    seen: list[int] = []

    def fails(**_kwargs: Any) -> None:
        # Intent before signature: row and event exist when the key is used.
        seen.extend(
            [Token.objects.count(), Event.objects.filter(kind="registry.token.issued").count()]
        )
        raise TemporarilyUnavailableError("The key did not answer.")

    monkeypatch.setattr("registry.services.tokens.token_signer", fails)
    response = issue(agent, grant, key="again")
    assert_refused(response, 503, "temporarily_unavailable")
    assert response["Retry-After"]
    assert seen == [1, 1]
    monkeypatch.undo()
    assert issue(agent, grant, key="again").status_code == 201
    assert Token.objects.count() == 1


def test_a_repeated_call_signs_the_stored_claims_again_and_stores_no_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    first, second = issue(agent, grant, key="one").json(), issue(agent, grant, key="one").json()
    audience = service_provider.audience
    assert claims_of(first["access_token"], audience, now) == claims_of(
        second["access_token"], audience, now
    )
    assert Event.objects.filter(kind="registry.token.issued").count() == 1
    assert first["access_token"] not in str(IdempotencyRecord.objects.values())


def test_retry_after_the_token_expired_is_idempotency_expired(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant, key="one")
    Token.objects.update(expires_at=now - timedelta(seconds=1))
    assert_refused(issue(agent, grant, key="one"), 409, "idempotency_expired")


def test_a_repeated_call_gives_no_token_once_the_grant_ended(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant, key="one")
    revoke_grant(grant=grant, actor=TESTER, now=now)
    assert_refused(issue(agent, grant, key="one"), 400, "invalid_grant")


def test_a_repeated_call_gives_no_token_while_another_party_is_suspended(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    first = issue(agent, grant, key="one").json()
    suspend_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    assert_refused(issue(agent, grant, key="one"), 400, "invalid_grant")
    resume_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    again, audience = issue(agent, grant, key="one").json(), service_provider.audience
    assert claims_of(again["access_token"], audience, now) == claims_of(
        first["access_token"], audience, now
    )


def test_a_repeated_call_gives_no_token_for_a_replaced_key(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """A call with a new Idempotency-Key is decided by the present state."""
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant, key="one")
    assert agent.rotate().status_code == 200
    assert_refused(issue(agent, grant, key="one"), 400, "invalid_grant")
    assert issue(agent, grant, key="two").status_code == 201


def test_a_repeated_call_gives_no_token_of_an_earlier_grant_version(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant, key="one")
    Token.objects.update(grant_version=grant.version + 1)
    assert_refused(issue(agent, grant, key="one"), 400, "invalid_grant")
    assert issue(agent, grant, key="two").status_code == 201


def test_a_repeated_call_for_a_revoked_token_is_idempotency_expired(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """Also if the grant has ended: a new key then gets the reason."""
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant, key="one")
    revoke_token(jti=Token.objects.get().jti, actor=TESTER, now=now)
    assert_refused(issue(agent, grant, key="one"), 409, "idempotency_expired")
    revoke_grant(grant=grant, actor=TESTER, now=now)
    assert_refused(issue(agent, grant, key="one"), 409, "idempotency_expired")
    assert_refused(issue(agent, grant, key="two"), 400, "invalid_grant")


def test_OG_12_each_call_is_a_new_token(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    assert issue(agent, grant).json()["access_token"] != issue(agent, grant).json()["access_token"]
    assert Event.objects.filter(kind="registry.token.issued").count() == 2


def test_KM_2_nothing_is_spent_or_written_if_key_service_is_throttled(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = approved(agent, service_provider, now=now)
    pace = throttled_at(Clock(), 20)
    monkeypatch.setattr("kms.token_signer.PACE", pace)
    before = SpentProof.objects.count(), Token.objects.count()
    answers = [agent.call("POST", "/v1/tokens", {"grant_id": str(grant.pk)}) for _ in range(5)]
    late = [each for each in answers if each.status_code == 503]
    assert late
    for answer in late:
        assert answer.json()["error"] == "temporarily_unavailable"
        assert answer["Retry-After"] == "1"
    served = len(answers) - len(late)
    assert Token.objects.count() == before[1] + served
    assert SpentProof.objects.count() == before[0] + served


def test_OG_1_unauthenticated_calls_use_no_key_service_capacity(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = approved(agent, service_provider, now=now)
    monkeypatch.setattr("kms.token_signer.PACE", throttled_at(Clock(), 20))
    stranger, body = AgentClient(), {"grant_id": str(grant.pk)}
    replayed = agent.proof("POST", "/v1/tokens", json.dumps(body).encode())
    assert agent.call("POST", "/v1/tokens", body, proof=replayed).status_code == 201
    for _ in range(5):
        assert_refused(
            agent.call("POST", "/v1/tokens", body, proof=None), 400, "invalid_dpop_proof"
        )
        assert_refused(stranger.call("POST", "/v1/tokens", body), 401, "invalid_client")
        assert agent.call("POST", "/v1/tokens", body, proof=replayed).json()["reason"] == "replayed"
    assert issue(agent, grant).status_code == 201
