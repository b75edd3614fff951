"""verify_audit reports each grant that contradicts its receipts or the log."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from audit.tests.command_output import json_of, output_of
from audit.tests.tampering import as_table_owner
from kms.models import Key
from kms.services import disable_key
from registry.models import Grant, Human, ServiceProvider
from registry.services.evidence_contradictions import find_contradictions
from registry.services.grants import resume_grant, revoke_grant, suspend_grant
from registry.services.service_providers import change_audience
from registry.tests.cast import PAY, TESTER, AgentClient, approve, approved, pending
from registry.tests.test_approval_receipt_check import set_approved
from tests import receipts

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]


@pytest.fixture(autouse=True)
def _own_state(settings: Any, tmp_path: Any) -> None:
    settings.VAR_DIR = tmp_path


def found() -> list[str]:
    return [each.subject for each in find_contradictions(now=timezone.now())]


def test_grants_that_were_signed_stand_whatever_happened_since(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    approved(agent, service_provider, now=now)
    pending(agent, service_provider, now=now, capabilities=[PAY])
    for cause in Grant.SuspensionCause:
        grant = approved(agent, service_provider, now=now, capabilities=[PAY])
        suspend_grant(grant=grant, cause=cause, actor=TESTER, now=now)
    resumed = approved(agent, service_provider, now=now)
    suspend_grant(grant=resumed, actor=TESTER, now=now)
    resume_grant(grant=resumed, actor=TESTER, now=now)
    again = approved(agent, service_provider, now=now)
    suspend_grant(grant=again, cause="key_rotated", actor=TESTER, now=now)
    approve(again, alice, now=now)
    revoke_grant(grant=approved(agent, service_provider, now=now), actor=TESTER, now=now)
    assert found() == []
    # It moves away from what was signed, and each of its grants waits for a new signature.
    change_audience(
        service_provider=service_provider,
        audience="http://127.0.0.1:8009/v2",
        actor=TESTER,
        now=now,
    )
    assert found() == []


def test_DJ_17_what_was_set_to_approved_is_named_and_nothing_else(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    approved(agent, service_provider, now=now)
    forged = pending(agent, service_provider, now=now)
    set_approved(forged, alice, now)
    copied = pending(agent, service_provider, now=now, capabilities=[PAY])
    set_approved(copied, alice, now)
    receipts.copy(receipts.last_of(approved(agent, service_provider, now=now)), copied, now=now)
    widened = approved(agent, service_provider, now=now)
    Grant.objects.filter(pk=widened.pk).update(capabilities=[PAY])
    assert sorted(found()) == sorted(str(grant.pk) for grant in (forged, copied, widened))


@pytest.mark.parametrize(
    "change", [{"capabilities": [PAY]}, {"envelope": {"max_uses": 9}}, {"version": 0}]
)
def test_DJ_17_terms_of_a_suspended_grant_are_compared_too(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, change: dict[str, Any]
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    Grant.objects.update(**change)
    assert found() == [str(grant.pk)]


@pytest.mark.parametrize("version", [1, 2])
def test_DJ_17_a_suspended_grant_set_to_approved_is_named(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, version: int
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    resume_grant(grant=grant, actor=TESTER, now=now)
    assert found() == []
    suspend_grant(grant=grant, actor=TESTER, now=now)
    Grant.objects.update(status="approved", suspension_cause="", version=version)
    [(_, named, problem, *_)] = find_contradictions(now=now)
    assert named == str(grant.pk)
    assert "registry.grant.suspended at version 3, and no event" in problem


def test_DJ_17_revoked_grant_set_to_approved_by_table_owner_is_found(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    revoke_grant(grant=grant, actor=TESTER, now=now)
    with as_table_owner():
        Grant.objects.update(status="approved", ended_at=None)
        [(_, named, problem, *_)] = find_contradictions(now=now)
    assert (named, "registry.grant.revoked" in problem) == (str(grant.pk), True)


def test_a_disabled_receipt_key_leaves_its_grants_without_proof(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    disable_key(kid=Key.objects.get(purpose="receipt").kid, actor=TESTER, now=now, even_last=True)
    assert found() == [str(grant.pk)]


def test_SA_8_disabled_receipt_key_is_distinct_from_a_changed_grant(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, changed = (approved(agent, service_provider, now=now) for _ in range(2))
    disable_key(kid=Key.objects.get(purpose="receipt").kid, actor=TESTER, now=now, even_last=True)
    told = json_of("verify_audit")
    assert told["contradicted_grants"] == {}
    assert set(told["grants_of_disabled_keys"]) == {str(grant.pk), str(changed.pk)}
    said = output_of("verify_audit")
    assert (
        f"Grant {grant.pk} permits nothing: the key that signed its receipt was disabled on" in said
    )
    assert "WAS CHANGED" not in said
    # Terms without a receipt are reported as before, and so are grants the log says ended.
    Grant.objects.filter(pk=changed.pk).update(envelope={"max_uses": 1})
    revoke_grant(grant=grant, actor=TESTER, now=now)
    with as_table_owner():
        Grant.objects.filter(pk=grant.pk).update(status="approved", ended_at=None)
        problems = {each.subject: each.disabled_at for each in find_contradictions(now=now)}
    assert problems == {str(grant.pk): "", str(changed.pk): ""}


def test_all_are_looked_at_however_many(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("registry.services.evidence_contradictions._BATCH", 2)
    grants = [approved(agent, service_provider, now=now) for _ in range(5)]
    Grant.objects.update(envelope={"max_uses": 1})
    assert sorted(found()) == sorted(str(grant.pk) for grant in grants)


def test_DJ_17_verify_audit_names_the_grant_and_exits_with_1(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)

    assert json_of("verify_audit")["contradicted_grants"] == {}
    Grant.objects.update(valid_until=now.replace(microsecond=0) + timedelta(days=9))
    said = output_of("verify_audit", code=1)
    assert f"GRANT {grant.pk} WAS CHANGED: no signed approval covers its terms." in said
    assert "The log is whole" in said
