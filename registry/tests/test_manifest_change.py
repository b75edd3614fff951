"""A later manifest: renewed or changed, by whom and when, and what it does to grants and tokens."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey
from audit.models import Event
from registry.models import Agent, BarredKey, Grant, Human, ServiceProvider, Token
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.expiry import expire_everything
from registry.services.grants import resume_grant, suspend_grant
from registry.services.token_state import token_state
from registry.tests.cast import (
    MANIFEST,
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
from tests.forging import changed_signature

pytestmark = pytest.mark.django_db
WRITE_FILES: dict[str, Any] = {"type": "write", "resource": "files"}


def test_a_renewal_gives_a_new_life_and_kills_nothing(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    assert issue(agent, grant).status_code == 201
    before = agent.agent()
    answer = agent.replace(days=90)
    after = agent.agent()
    assert answer.status_code == 200
    assert answer.json() == agent.call("GET", "/v1/agents/me").json()
    assert after.expires_at - before.expires_at > timedelta(days=29)
    assert after.manifest_sha256 != before.manifest_sha256
    grant.refresh_from_db()
    assert (grant.status, grant.version) == ("approved", 1)
    assert token_state(Token.objects.get().jti).refusal(now) is None
    event = Event.objects.get(kind="registry.agent.manifest_renewed")
    assert (event.agent_id, event.human_id) == (after.pk, after.human_id)
    assert event.data["manifest_sha256"] == after.manifest_sha256


def test_a_change_raises_the_version_and_the_agent_gets_new_tokens(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant)
    assert agent.replace(name="Another Name").json()["name"] == "Another Name"
    grant.refresh_from_db()
    assert (grant.status, grant.version) == ("approved", 2)
    assert token_state(Token.objects.get().jti).refusal(now) == "grant_inactive"
    assert issue(agent, grant).status_code == 201
    assert token_state(Token.objects.latest("issued_at").jti).refusal(now) is None
    raised = Event.objects.get(kind="registry.grant.version_raised")
    assert (raised.grant_id, raised.reason, raised.data) == (
        grant.pk,
        "manifest_changed",
        {"version": 2},
    )
    assert Event.objects.filter(kind="registry.agent.manifest_changed").count() == 1


@pytest.mark.parametrize(
    "change",
    [
        {"name": "Other"},
        {"description": "Other"},
        {"model_origin": "other.example"},
        {"capabilities": [*MANIFEST, {"type": "read", "resource": "mail"}]},
    ],
)
def test_each_part_of_what_it_says_is_a_change(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, change: dict[str, Any]
) -> None:
    grant = approved(agent, service_provider, now=now)
    assert agent.replace(**change).status_code == 200
    grant.refresh_from_db()
    assert (grant.status, grant.version) == ("approved", 2)


def test_what_the_new_manifest_does_not_cover_is_suspended_and_withdrawn(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    paying = approved(agent, service_provider, now=now, capabilities=[PAY])
    reading = approved(agent, service_provider, now=now)
    wanted = pending(agent, service_provider, now=now, capabilities=[WRITE_FILES])
    kept = pending(
        agent,
        service_provider,
        now=now,
        capabilities=[{"type": "read", "resource": "calendar/work"}],
    )
    assert agent.replace(capabilities=[READ_CALENDAR]).status_code == 200
    for grant in (paying, reading, wanted, kept):
        grant.refresh_from_db()
    assert (paying.status, paying.suspension_cause, paying.version) == (
        "suspended",
        "manifest_changed",
        2,
    )
    assert (reading.status, reading.version) == ("approved", 2)
    assert (wanted.status, kept.status) == ("withdrawn", "pending")
    withdrawn = Event.objects.get(kind="registry.grant.withdrawn")
    assert (withdrawn.grant_id, withdrawn.reason) == (wanted.pk, "manifest_changed")
    assert Event.objects.get(kind="registry.agent.manifest_changed").data["grants_suspended"] == 1
    shown = agent.call("GET", f"/v1/grants/{paying.pk}").json()
    assert shown["approval_url"].endswith(f"/approvals/{paying.pk}/")


def test_what_a_person_had_suspended_does_not_come_back_past_the_change(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=[PAY])
    suspend_grant(grant=grant, actor=TESTER, now=now)
    agent.replace(capabilities=[READ_CALENDAR])
    grant.refresh_from_db()
    assert (grant.suspension_cause, grant.version) == ("manifest_changed", 3)
    with pytest.raises(Exception, match="its owner must sign it again"):
        resume_grant(grant=grant, actor=TESTER, now=now)


def test_an_expired_agent_returns_by_renewing(
    alice: Human, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    client = enrolled(alice, now=now)
    grant = approved(client, service_provider, now=now)
    for recorded in (False, True):
        Agent.objects.update(expires_at=now - timedelta(seconds=1))
        if recorded:
            assert expire_everything(now=now)["agents"] == 1
        assert client.call("GET", "/v1/agents/me").json()["status"] == "expired"
        assert_refused(issue(client, grant), 400, "invalid_grant")
        assert client.replace(later=5 + recorded).json()["status"] == "active"
        assert issue(client, grant).status_code == 201
    assert Event.objects.filter(kind="registry.agent.manifest_renewed").count() == 2


def test_renewed_expired_unclaimed_agent_is_unclaimed_again(db: None, now: datetime) -> None:
    stray = AgentClient()
    stray.register()
    Agent.objects.update(expires_at=now - timedelta(seconds=1))
    assert stray.call("GET", "/v1/agents/me").json()["status"] == "expired"
    assert stray.replace().json()["status"] == "unclaimed"
    Agent.objects.update(expires_at=now - timedelta(seconds=1), status="expired")
    assert stray.replace(later=6).json()["status"] == "unclaimed"


def test_an_unclaimed_agent_may_change_its_manifest(db: None) -> None:
    stray = AgentClient()
    code = stray.register().json()["claim_code"]
    assert stray.replace(name="Another").json()["status"] == "unclaimed"
    # It does not affect link and code.
    again = stray.call("POST", "/v1/agents", {"manifest": stray.manifest(name="Another")}).json()
    assert again["claim_code"] == code


def test_suspended_agent_gets_403_and_a_revoked_one_401(agent: AgentClient, now: datetime) -> None:
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    before = agent.agent().manifest
    assert_refused(agent.replace(), 403, "agent_inactive")
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.replace(), 401, "invalid_client")
    assert agent.agent().manifest == before


def test_the_present_manifest_again_changes_nothing(agent: AgentClient) -> None:
    body = {"manifest": agent.manifest(later=5, name="New")}
    first = agent.call("POST", "/v1/agents/me/manifest", body)
    second = agent.call("POST", "/v1/agents/me/manifest", body)
    assert (first.status_code, first.content) == (200, second.content)
    assert Event.objects.filter(kind="registry.agent.manifest_changed").count() == 1


@pytest.mark.parametrize(("later", "status"), [(4, 409), (5, 409), (6, 200)])
def test_the_iat_of_a_manifest_is_later_than_the_one_before(
    agent: AgentClient, later: int, status: int
) -> None:
    assert agent.replace(later=5).status_code == 200
    answer = agent.replace(later=later, name="New")
    assert answer.status_code == status
    assert status == 200 or answer.json()["error"] == "invalid_state"


@pytest.mark.parametrize("later", [0, -60])
def test_an_older_manifest_cannot_be_put_back(agent: AgentClient, later: int) -> None:
    old = agent.manifest(
        later=later, capabilities=[*MANIFEST, {"type": "read", "resource": "mail"}]
    )
    assert agent.replace(later=5).status_code == 200
    before = agent.agent().manifest
    assert_refused(
        agent.call("POST", "/v1/agents/me/manifest", {"manifest": old}), 409, "invalid_state"
    )
    assert agent.agent().manifest == before


def test_DN_15_a_renewal_by_another_key_than_the_agents_is_refused(
    agent: AgentClient, alice: Human, now: datetime
) -> None:
    """Key B sends key A's manifest, key A key B's, and an unknown key its own."""
    other, stranger = enrolled(alice, now=now), AgentClient()
    mine, theirs = agent.manifest(later=5, name="New"), other.manifest(later=5, name="New")
    path = "/v1/agents/me/manifest"
    assert_refused(other.call("POST", path, {"manifest": mine}), 400, "invalid_manifest")
    assert_refused(agent.call("POST", path, {"manifest": theirs}), 400, "invalid_manifest")
    assert_refused(
        stranger.call("POST", path, {"manifest": stranger.manifest()}), 401, "invalid_client"
    )
    assert set(Agent.objects.values_list("name", flat=True)) == {"Research Assistant"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"manifest": 1},
        {"manifest": ""},
        {"manifest": "a.b.c", "enrolment_code": "X"},
        {"manifest": "x" * 9000},
        [],
    ],
)
def test_a_body_of_another_form_is_refused(agent: AgentClient, body: Any) -> None:
    answer = agent.call("POST", "/v1/agents/me/manifest", body)
    assert_refused(answer, 400, answer.json()["error"])
    assert answer.json()["error"] in {"invalid_request", "invalid_manifest"}


def test_a_bad_manifest_is_refused_as_at_registration(agent: AgentClient) -> None:
    path = "/v1/agents/me/manifest"
    good = agent.manifest(later=5)
    bad_ones = (
        changed_signature(good),
        agent.manifest(later=-61 * 86_400),
        agent.manifest(later=120),
        agent.proof("POST", path),
    )
    for bad in bad_ones:
        assert_refused(agent.call("POST", path, {"manifest": bad}), 400, "invalid_manifest")
    assert_refused(
        agent.call("POST", path, {"manifest": good}, query="?x=1"), 400, "invalid_request"
    )
    assert_refused(
        agent.call("POST", path, {"manifest": good}, proof=None), 401, "invalid_dpop_proof"
    )
    assert_refused(agent.call("GET", path), 405, "method_not_allowed")


def test_a_private_key_in_the_manifest_ends_the_agent(agent: AgentClient) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    seed = load_pem_private_key(agent.private.to_pem(), None).private_bytes_raw()  # type: ignore[union-attr]
    leaked = sign_compact(
        {},
        agent.signer,
        typ="agent-manifest+jwt",
        header={"jwk": agent.signer.public.jwk | {"d": b64u_encode(seed)}},
    )
    assert_refused(
        agent.call("POST", "/v1/agents/me/manifest", {"manifest": leaked}), 400, "invalid_request"
    )
    assert agent.agent().status == "revoked"
    assert BarredKey.objects.get().jkt == agent.jkt


def test_the_same_call_with_one_idempotency_key_is_one_change(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    body = {"manifest": agent.manifest(later=5, name="New")}
    answers = [agent.call("POST", "/v1/agents/me/manifest", body, key="once") for _ in range(2)]
    assert [answer.json() for answer in answers] == [answers[0].json()] * 2
    grant.refresh_from_db()
    assert grant.version == 2
    assert_refused(agent.replace(key="once", later=9), 409, "idempotency_mismatch")


def test_a_manifest_that_ends_earlier_ends_tokens_earlier(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    issue(agent, grant)
    jti = Token.objects.get().jti
    Agent.objects.update(expires_at=now + timedelta(seconds=30))
    assert issue(agent, grant).json()["expires_in"] <= 30
    # Existing tokens are judged by the agent's current state, not by the end in the token.
    assert token_state(jti).refusal(now + timedelta(seconds=31)) == "agent_inactive"


def test_a_grant_past_its_end_is_left_alone(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=[PAY])
    Grant.objects.update(valid_until=now - timedelta(seconds=1))
    agent.replace(capabilities=[READ_CALENDAR])
    grant.refresh_from_db()
    assert (grant.status, grant.version) == ("approved", 1)


def test_a_key_of_another_kind_signs_its_manifest_too(alice: Human, now: datetime) -> None:
    client = enrolled(alice, now=now, alg="ES256")
    assert client.replace(name="New").status_code == 200
    assert LocalSigner(PrivateKey.generate()).alg != client.signer.alg
