"""expire_everything: what is recorded as ended, what is deleted, and what stays."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidStateError
from audit.models import Event, Opening
from audit.services import seal_audit
from audit.verify.verification import verify_log
from registry.models import (
    Agent,
    Grant,
    Human,
    IdempotencyRecord,
    ServiceProvider,
    SpentProof,
    Token,
)
from registry.services import expiry
from registry.services.database_time import database_time
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.expiry import expire_everything
from registry.services.grants import expire_grant, suspend_grant
from registry.services.spent_proofs import spend_proof
from registry.tests.cast import TESTER, AgentClient, approved, issue, pending

pytestmark = pytest.mark.django_db


def test_pending_approved_and_suspended_grants_expire_once(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    waiting = pending(agent, service_provider, now=now)
    good = approved(agent, service_provider, now=now, seconds=7200)
    held = approved(agent, service_provider, now=now, seconds=7201)
    suspend_grant(grant=held, actor=TESTER, now=now)
    just_before = now + timedelta(minutes=59)
    assert expire_everything(now=just_before)["grants"] == 0
    assert expire_everything(now=now + timedelta(hours=1))["grants"] == 1
    waiting.refresh_from_db()
    assert waiting.status == "expired"
    assert expire_everything(now=now + timedelta(hours=3))["grants"] == 2
    assert expire_everything(now=now + timedelta(hours=3))["grants"] == 0
    assert set(Grant.objects.values_list("status", flat=True)) == {"expired"}
    assert Event.objects.filter(kind="registry.grant.expired").count() == 3
    good.refresh_from_db()
    assert good.ended_at == now + timedelta(hours=3)


def test_a_grant_is_not_ended_before_its_end_nor_twice(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, seconds=7200)
    with pytest.raises(InvalidStateError):
        expire_grant(grant=grant, actor=TESTER, now=now + timedelta(minutes=119))
    assert Grant.objects.get(pk=grant.pk).status == "approved"
    expire_grant(grant=grant, actor=TESTER, now=now + timedelta(hours=2))
    with pytest.raises(InvalidStateError):
        expire_grant(grant=grant, actor=TESTER, now=now + timedelta(hours=2))
    assert Event.objects.filter(kind="registry.grant.expired").count() == 1


def test_an_agent_expires_with_its_manifest(agent: AgentClient, now: datetime) -> None:
    assert expire_everything(now=now + timedelta(days=59))["agents"] == 0
    assert expire_everything(now=now + timedelta(days=61))["agents"] == 1
    assert agent.agent().status == "expired"
    assert Event.objects.get(kind="registry.agent.expired").agent_id == agent.agent().id


def test_unclaimed_agent_is_deleted_after_a_week_and_its_key_is_freed(
    service_provider: ServiceProvider, now: datetime
) -> None:
    client = AgentClient()
    first = client.register().json()["agent_id"]
    client.ask(service_provider)
    week = now + timedelta(days=7, hours=1)
    assert expire_everything(now=week - timedelta(minutes=1))["unclaimed_agents_deleted"] == 0
    assert Opening.objects.exists()
    assert expire_everything(now=week + timedelta(minutes=1))["unclaimed_agents_deleted"] == 1
    # What it wrote has no owner who could ask for its erasure.
    assert not Opening.objects.exists()
    seal_audit(now=now)
    assert verify_log().ok
    assert not Agent.objects.exists()
    assert not Grant.objects.exists()
    assert str(Event.objects.get(kind="registry.agent.deleted").agent_id) == first
    response = client.register()
    assert response.status_code == 201
    assert response.json()["agent_id"] != first


def test_what_is_only_remembered_is_forgotten_in_time(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    SpentProof.objects.all().delete()
    spend_proof(jkt="a", jti="b", until=now + timedelta(seconds=65))
    agent.ask(service_provider, key="k")
    SpentProof.objects.filter(expires_at__gt=now + timedelta(seconds=65)).delete()
    create_enrolment_code(human=alice, actor=TESTER, now=now)
    early = expire_everything(now=now + timedelta(seconds=64))
    assert (early["answers"], early["enrolment_codes"]) == (0, 0)
    # The jobs' clock may be ahead of a verifier's, and a call may wait for a lock.
    assert expire_everything(now=now + timedelta(seconds=65 + 59))["proofs"] == 0
    expire_everything(now=now + timedelta(seconds=65 + 60))
    assert not SpentProof.objects.exists()
    late = expire_everything(now=now + timedelta(days=1, minutes=1))
    assert (late["answers"], late["enrolment_codes"]) == (1, 1)
    assert not IdempotencyRecord.objects.exists()


def test_however_much_waits_all_of_it_is_forgotten_a_few_at_a_time(
    now: datetime, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(expiry, "FORGOTTEN_AT_ONCE", 2)
    for number in range(5):
        spend_proof(jkt="a", jti=str(number), until=now)
    spend_proof(jkt="a", jti="later", until=now + timedelta(seconds=1))
    # Batches of 2, 2 and 1, each a read and a deletion; then a read that finds nothing.
    with django_assert_num_queries(7):
        assert expiry.forget(SpentProof.objects.filter(expires_at__lte=now)) == 5
    assert SpentProof.objects.count() == 1


def test_a_token_is_kept_for_as_long_as_its_call_can_be_repeated(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: datetime
) -> None:
    issue(agent, approved(agent, service_provider, now=now))
    ends = Token.objects.get().expires_at
    assert expire_everything(now=ends + timedelta(hours=23, minutes=59))["tokens"] == 0
    assert expire_everything(now=ends + timedelta(hours=24))["tokens"] == 1
    assert not Token.objects.exists()


@pytest.mark.postgres
def test_DN_13_what_a_host_that_is_ahead_takes_for_over_is_not_forgotten(
    agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a valid proof would pass again."""
    monkeypatch.setattr("registry.services.database_time.database_time", database_time)
    for seconds in (65, -61):
        spend_proof(jkt="jkt", jti=str(seconds), until=now + timedelta(seconds=seconds))
    assert expire_everything(now=now + timedelta(minutes=5))["proofs"] == 1
    assert [each.expires_at > now for each in SpentProof.objects.all()] == [True]
    # A job whose clock is behind deletes nothing early either.
    assert expire_everything(now=now - timedelta(minutes=5))["proofs"] == 0
