"""Key rotation: the old key is barred at once and for good; serious changes wait for the owner."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidClientError, InvalidStateError, KeyInUseError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_change import KEY_CHANGE_TYP, verify_key_change
from agentauth.protocol.keys import LocalSigner, PrivateKey
from audit.models import Event
from kms.tests.sealing import change
from registry.models import Agent, BarredKey, Human, ServiceProvider, Token
from registry.services.agent_key_rotation import rotate_agent_key
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.grants import suspend_grant
from registry.services.token_state import token_state
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approved,
    assert_refused,
    claim_link,
    enrolled,
    issue,
    pending,
)

pytestmark = pytest.mark.django_db
PATH = "/v1/agents/me/key"


def old_of(client: AgentClient) -> AgentClient:
    """The agent as an attacker with its current key."""
    kept = AgentClient()
    kept.private, kept.signer = client.private, client.signer
    return kept


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_rotation_swaps_the_key_and_bars_the_old_one(agent: AgentClient, alg: Any) -> None:
    old, agent_id = old_of(agent), agent.agent().pk
    answer = agent.rotate(PrivateKey.generate(alg))
    assert answer.status_code == 200
    assert answer.json() == agent.call("GET", "/v1/agents/me").json()
    assert answer.json()["jkt"] == agent.jkt != old.jkt
    row = agent.agent()
    assert (row.pk, row.public_jwk) == (agent_id, agent.signer.public.jwk)
    assert (BarredKey.objects.get().jkt, BarredKey.objects.get().reason) == (old.jkt, "rotated")
    event = Event.objects.get(kind="registry.agent.key_rotated")
    assert event.data == {"old_jkt": old.jkt, "jkt": agent.jkt, "grants_suspended": 0}
    for method, path in [("GET", "/v1/agents/me"), ("POST", "/v1/tokens"), ("POST", PATH)]:
        assert_refused(
            old.call(method, path, {} if method == "POST" else None), 401, "invalid_client"
        )
    assert_refused(old.register(), 401, "invalid_client")


def test_tokens_of_the_old_key_are_revoked_and_grave_grants_wait(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    reading = approved(agent, service_provider, now=now)
    paying = approved(agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY])
    for grant in (reading, paying):
        assert issue(agent, grant).status_code == 201
    agent.rotate()
    assert {token_state(token.jti).refusal(now) for token in Token.objects.all()} == {"revoked"}
    for grant in (reading, paying):
        grant.refresh_from_db()
    assert (reading.status, reading.version) == ("approved", 2)
    assert (paying.status, paying.suspension_cause, paying.version) == (
        "suspended",
        "key_rotated",
        2,
    )
    assert issue(agent, reading).status_code == 201
    assert token_state(Token.objects.latest("issued_at").jti).refusal(now) is None
    assert_refused(issue(agent, paying), 400, "invalid_grant")
    assert Event.objects.get(kind="registry.agent.key_rotated").data["grants_suspended"] == 1
    assert Event.objects.get(kind="registry.grant.suspended").reason == "key_rotated"


def test_a_delete_is_as_grave_as_a_payment(
    alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    wish = {"type": "delete", "resource": "files"}
    change(ServiceProvider.objects.all(), allowed=["delete:files"])
    service_provider.refresh_from_db()
    client = enrolled(alice, now=now)
    Agent.objects.update(capabilities=[wish])
    grant = approved(client, service_provider, now=now, capabilities=[wish])
    client.rotate()
    grant.refresh_from_db()
    assert (grant.status, grant.suspension_cause) == ("suspended", "key_rotated")


def test_what_a_person_had_suspended_waits_for_a_signature_too(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    """Otherwise resuming it would validate it for a key that no user signed for."""
    paying = approved(agent, service_provider, now=now, capabilities=[PAY])
    reading = approved(agent, service_provider, now=now)
    for grant in (paying, reading):
        suspend_grant(grant=grant, actor=TESTER, now=now)
    agent.rotate()
    for grant in (paying, reading):
        grant.refresh_from_db()
    assert (paying.suspension_cause, paying.version) == ("key_rotated", 3)
    assert (reading.suspension_cause, reading.version) == ("person", 3)


def test_a_pending_request_stays_pending(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now, capabilities=[PAY])
    agent.rotate()
    grant.refresh_from_db()
    assert (grant.status, grant.version) == ("pending", 1)


def test_DN_15_a_token_is_asked_for_with_the_agents_present_key_alone(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    token_key: None,
    now: datetime,
) -> None:
    """400 by another agent's key, 401 by an unregistered or former key; no token is issued."""
    grant = approved(agent, service_provider, now=now)
    old = old_of(agent)
    other = enrolled(alice, now=now)
    assert issue(agent, grant).status_code == 201
    assert_refused(issue(other, grant), 400, "invalid_grant")
    assert_refused(issue(AgentClient(), grant), 401, "invalid_client")
    agent.rotate()
    assert_refused(issue(old, grant), 401, "invalid_client")
    assert Token.objects.count() == 1
    assert issue(agent, grant).status_code == 201


def test_the_manifest_stays_and_the_next_one_is_signed_by_the_new_key(agent: AgentClient) -> None:
    old, before = old_of(agent), agent.agent().manifest
    agent.rotate()
    assert agent.agent().manifest == before
    by_old_key = {"manifest": old.manifest(later=5)}
    assert_refused(
        agent.call("POST", "/v1/agents/me/manifest", by_old_key), 400, "invalid_manifest"
    )
    assert agent.replace(later=6).status_code == 200
    # Registering again with the new key finds the agent.
    again = agent.register()
    assert (again.status_code, again.json()["agent_id"]) == (200, str(agent.agent().pk))


def test_only_an_active_agent_rotates(alice: Human, agent: AgentClient, now: datetime) -> None:
    stray = AgentClient()
    stray.register()
    secret = claim_link(stray.agent())
    assert_refused(stray.rotate(), 403, "agent_inactive")
    assert claim_link(stray.agent()) == secret
    expired = enrolled(alice, now=now)
    Agent.objects.filter(jkt=expired.jkt).update(expires_at=now - timedelta(seconds=1))
    assert_refused(expired.rotate(), 403, "agent_inactive")
    suspend_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.rotate(), 403, "agent_inactive")
    revoke_agent(agent=agent.agent(), actor=TESTER, now=now)
    assert_refused(agent.rotate(), 401, "invalid_client")
    assert not BarredKey.objects.exists()


def test_key_in_use_or_used_before_is_refused(
    agent: AgentClient, alice: Human, now: datetime
) -> None:
    other, gone, first = enrolled(alice, now=now), enrolled(alice, now=now), agent.private
    revoke_agent(agent=gone.agent(), actor=TESTER, now=now)
    assert_refused(agent.rotate(other.private), 409, "key_in_use")
    assert_refused(agent.rotate(gone.private), 409, "key_in_use")
    assert agent.rotate().status_code == 200
    # Back to its former key, which is barred for good.
    assert_refused(agent.rotate(first), 409, "key_in_use")


@pytest.mark.parametrize(
    "change",
    [
        {"audience": "https://elsewhere.example"},
        {"issued_at": 1_700_000_000},
        {"jti": ""},
        {"agent_id": "01900000-0000-7000-8000-000000000001"},
        {"old_jkt": "x" * 43},
    ],
)
def test_a_statement_for_something_else_is_refused(
    agent: AgentClient, change: dict[str, Any]
) -> None:
    body = {"new_key": agent.key_change(LocalSigner(PrivateKey.generate()), **change)}
    assert_refused(agent.call("POST", PATH, body), 400, "invalid_request")
    assert not BarredKey.objects.exists()


def test_the_statement_of_one_agent_is_nothing_for_another(
    agent: AgentClient, alice: Human, now: datetime
) -> None:
    """Mallory forwards what she saw: the new key would be hers, and alice's agent locked out."""
    other = enrolled(alice, now=now)
    seen = {"new_key": agent.key_change(LocalSigner(PrivateKey.generate()))}
    assert_refused(other.call("POST", PATH, seen), 400, "invalid_request")
    assert other.agent().jkt == other.jkt


def test_the_present_key_alone_names_no_other(agent: AgentClient) -> None:
    stranger = LocalSigner(PrivateKey.generate())
    claims = {
        "aud": "http://localhost:8000",
        "iat": int(datetime.now(UTC).timestamp()),
        "jti": "j",
        "agent_id": str(agent.agent().pk),
        "old_jkt": agent.jkt,
    }
    forged = sign_compact(
        claims, agent.signer, typ=KEY_CHANGE_TYP, header={"jwk": stranger.public.jwk}
    )
    assert_refused(agent.call("POST", PATH, {"new_key": forged}), 400, "invalid_request")
    assert agent.agent().jkt == agent.jkt


def test_rotation_to_the_same_key_is_refused(agent: AgentClient) -> None:
    claims = {
        "aud": "http://localhost:8000",
        "iat": int(datetime.now(UTC).timestamp()),
        "jti": "j",
        "agent_id": str(agent.agent().pk),
        "old_jkt": agent.jkt,
    }
    same = sign_compact(
        claims, agent.signer, typ=KEY_CHANGE_TYP, header={"jwk": agent.signer.public.jwk}
    )
    assert_refused(agent.call("POST", PATH, {"new_key": same}), 400, "invalid_request")
    assert not BarredKey.objects.exists()


def test_a_private_key_in_the_statement_is_barred(agent: AgentClient) -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = LocalSigner(private := PrivateKey.generate())
    seed = load_pem_private_key(private.to_pem(), None).private_bytes_raw()  # type: ignore[union-attr]
    jwk = signer.public.jwk | {"d": b64u_encode(seed)}
    leaked = sign_compact({}, signer, typ=KEY_CHANGE_TYP, header={"jwk": jwk})
    assert_refused(agent.call("POST", PATH, {"new_key": leaked}), 400, "invalid_request")
    assert BarredKey.objects.get().jkt == signer.public.thumbprint
    assert agent.agent().status == "active"
    assert_refused(agent.rotate(private), 409, "key_in_use")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"new_key": 1},
        {"new_key": ""},
        {"new_key": "a.b.c", "jkt": "x"},
        {"new_key": "x" * 9000},
    ],
)
def test_a_body_of_another_form_is_refused(agent: AgentClient, body: Any) -> None:
    assert_refused(agent.call("POST", PATH, body), 400, "invalid_request")
    assert_refused(agent.call("GET", PATH), 405, "method_not_allowed")
    assert_refused(agent.call("POST", PATH, body, proof=None), 401, "invalid_dpop_proof")


def test_after_a_lost_reply_the_new_key_tells(agent: AgentClient) -> None:
    """The old key is barred, so the repeated call finds no agent; the registry has the new key."""
    old, new = old_of(agent), PrivateKey.generate()
    body = {"new_key": agent.key_change(LocalSigner(new))}
    assert agent.call("POST", PATH, body, key="once").status_code == 200
    assert_refused(old.call("POST", PATH, body, key="once"), 401, "invalid_client")
    agent.private, agent.signer = new, LocalSigner(new)
    assert agent.call("GET", "/v1/agents/me").json()["jkt"] == new.public.thumbprint


def test_of_two_rotations_one_finds_the_key_gone(agent: AgentClient, now: datetime) -> None:
    row = agent.agent()
    changes = [
        verify_key_change(
            agent.key_change(LocalSigner(PrivateKey.generate())),
            expected_audience="http://localhost:8000",
            expected_agent_id=str(row.pk),
            expected_old_jkt=row.jkt,
            now=int(now.timestamp()),
        )
        for _ in range(3)
    ]
    rotate_agent_key(agent=row, change=changes[0], actor=TESTER, now=now)
    with pytest.raises((InvalidStateError, InvalidClientError)):
        rotate_agent_key(agent=row, change=changes[1], actor=TESTER, now=now)
    assert Agent.objects.get(pk=row.pk).jkt == changes[0].jkt
    # Barred between authentication and the lock: no longer the agent's key.
    Agent.objects.filter(pk=row.pk).update(jkt=row.jkt)
    with pytest.raises(InvalidClientError):
        rotate_agent_key(agent=row, change=changes[2], actor=TESTER, now=now)


def test_a_key_registered_at_the_same_moment_is_in_use(agent: AgentClient, now: datetime) -> None:
    """The database guarantees unique keys: a check beforehand could miss a concurrent one."""
    new = AgentClient()
    new.register()
    change = verify_key_change(
        agent.key_change(new.signer),
        expected_audience="http://localhost:8000",
        expected_agent_id=str(agent.agent().pk),
        expected_old_jkt=agent.jkt,
        now=int(now.timestamp()),
    )
    with pytest.raises(KeyInUseError):
        rotate_agent_key(agent=agent.agent(), change=change, actor=TESTER, now=now)
    assert agent.agent().status == "active"
    assert not BarredKey.objects.exists()
