"""Every row whose seal is checked, now or in a later state, is sealed, checked, counted alike."""

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from agentauth.protocol.errors import GrantChangedError, InvalidStateError
from audit.models import Event
from audit.tests.waiting import wait_for_lock_waiters
from kms.models import Key
from kms.seal_backfill import seal_rows, unsealed_rows
from kms.services import disable_key, evidence_keys, public_jwks, rotate_key
from registry.models import Agent, Grant, Human, ServiceProvider, ServiceProviderSecret
from registry.services.evidence_contradictions import find_contradictions
from registry.services.service_providers import end_secret, revoke_service_provider
from registry.services.settings_agreement import record_settings
from registry.tests.cast import TESTER, AgentClient, approve, approved, issue
from registry.tests.cast import pending as asked_for
from registry.tests.test_seals import NEW, pending

__all__ = ["pending"]

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]
OF_AN_OWNER = [each for each in Agent.Status.values if each != Agent.Status.UNCLAIMED]
_PAST = timedelta(seconds=1)


def found() -> list[tuple[str, str, str]]:
    return [
        (each.table, each.subject, each.problem) for each in find_contradictions(now=timezone.now())
    ]


@pytest.mark.parametrize("status", OF_AN_OWNER)
@pytest.mark.usefixtures("pending")
def test_upgrade_seals_an_agent_of_any_state_with_its_grants(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, status: str
) -> None:
    approved(agent, service_provider, now=now)
    Agent.objects.update(status=status, seal=None)
    assert seal_rows(actor=TESTER, now=now).sealed["registry_agent"] == 1
    assert Agent.objects.get().is_sealed()
    assert found() == []


@pytest.mark.usefixtures("pending")
def test_expired_agent_renews_after_the_upgrade_and_gets_tokens(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    Agent.objects.update(status="expired", expires_at=now - _PAST, seal=None)
    seal_rows(actor=TESTER, now=now)
    assert agent.replace().json()["status"] == "active"
    assert issue(agent, grant).status_code == 201
    assert agent.rotate().status_code == 200
    assert issue(agent, grant).status_code == 201
    assert found() == []


@pytest.mark.parametrize("status", OF_AN_OWNER)
def test_secret_key_is_not_dropped_while_it_seals_an_agent_of_any_state(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, settings: Any, status: str
) -> None:
    grant = approved(agent, service_provider, now=now)
    record_settings(actor=TESTER, now=now)
    old = settings.SECRET_KEY
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = NEW, [old]
    record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)
    seal_rows(actor=TESTER, now=now)
    # As if it expired or was revoked before rows were sealed again.
    Agent.objects.update(status=status, expires_at=now - _PAST, seal=_sealed_by(old, settings))
    settings.SECRET_KEY_FALLBACKS = []
    with pytest.raises(InvalidStateError, match=r"1 rows .* seal_rows"):
        record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)
    settings.SECRET_KEY_FALLBACKS = [old]
    assert seal_rows(actor=TESTER, now=now).sealed == {"registry_agent": 1}
    settings.SECRET_KEY_FALLBACKS = []
    record_settings(change=["SECRET_KEY"], actor=TESTER, now=now)
    assert found() == []
    if status == "expired":
        assert agent.replace().json()["status"] == "active"
        assert issue(agent, grant).status_code == 201


def _sealed_by(key: str, settings: Any) -> str | None:
    present, settings.SECRET_KEY = settings.SECRET_KEY, key
    row = Agent.objects.get()
    row.set_seal()
    settings.SECRET_KEY = present
    return row.seal


def test_disabled_key_is_not_logged_as_written_by_another(
    now: datetime, caplog: pytest.LogCaptureFixture
) -> None:
    key = Key.objects.get(purpose="token")
    following = rotate_key(purpose="token", actor=TESTER, now=now)
    disable_key(kid=key.kid, actor=TESTER, now=now, even_last=True)
    assert evidence_keys(purpose="token").keys() == {following.kid}
    assert [each["kid"] for each in public_jwks(purpose="token", now=now)["keys"]] == [
        following.kid
    ]
    assert "Refusing row" not in caplog.text
    assert list(unsealed_rows()) == []


def test_revoked_service_provider_is_not_logged_as_written_by_another(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant = asked_for(agent, service_provider, now=now)
    revoke_service_provider(service_provider=service_provider, actor=TESTER, now=now)
    with pytest.raises(GrantChangedError):
        approve(Grant.objects.get(pk=grant.pk), alice, now=now)
    assert "Refusing row" not in caplog.text
    assert list(unsealed_rows()) == []


@pytest.mark.usefixtures("pending")
def test_value_that_no_service_writes_does_not_end_the_upgrade_for_all(
    service_provider: ServiceProvider, now: datetime
) -> None:
    ServiceProvider.objects.update(allowed=[1.5])
    Key.objects.update(seal=None)
    done = seal_rows(actor=TESTER, now=now)
    assert done.refused == {"registry_serviceprovider": [str(service_provider.pk)]}
    assert done.sealed["kms_key"] == Key.objects.count()
    assert Event.objects.filter(kind="kms.seals.demanded").exists()
    assert not ServiceProvider.objects.get().is_sealed()


@contextmanager
def _after_reading(table: str, act: Callable[[], object]) -> Iterator[None]:
    """Act once, between the first statement that reads this table and the next one."""
    waiting = [act]

    def wrapper(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        done = execute(sql, *rest)
        if waiting and f'FROM "{table}"' in sql:
            waiting.pop()()
        return done

    wrapped: AbstractContextManager[None] = connection.execute_wrapper(wrapper)
    with wrapped:
        yield
    assert not waiting


@pytest.mark.parametrize("table", ["registry_agent", "registry_grant"])
def test_rotation_while_verify_audit_reads_is_not_reported(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime, table: str
) -> None:
    approved(agent, service_provider, now=now)
    with _after_reading(table, agent.rotate):
        assert found() == []
    assert found() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_row_that_ends_while_seal_rows_waits_for_it_gets_no_seal(
    service_provider: ServiceProvider, now: datetime
) -> None:
    secret = ServiceProviderSecret.objects.get()

    def seal() -> None:
        try:
            done.append(seal_rows(adopt=True, actor=TESTER, now=now))
        finally:
            connection.close()

    done: list[Any] = []
    sealing = threading.Thread(target=seal)
    with transaction.atomic():
        end_secret(secret=secret, actor=TESTER, now=now)
        sealing.start()
        wait_for_lock_waiters()
    sealing.join()
    secret.refresh_from_db()
    assert secret.seal is None
    assert (done[0].sealed, done[0].refused) == ({}, {})
