"""The parties: Alice with her passkey, Bob, an administrator, an agent, a service provider."""

from datetime import datetime

import pytest

from approvals.tests.cast import PAY, READ_CALENDAR, Person, registered
from kms.services import ensure_key
from registry.models import Grant, ServiceProvider
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, pending
from registry.tests.cast import enrolled as enrol


@pytest.fixture
def keys(db: None, now: datetime) -> None:
    for purpose in ("token", "receipt"):
        ensure_key(purpose=purpose, actor=TESTER, now=now)


@pytest.fixture
def alice(keys: None, now: datetime) -> Person:
    return registered("alice@example.org", "Alice", now=now)


@pytest.fixture
def bob(keys: None, now: datetime) -> Person:
    return registered("bob@example.org", "Bob", now=now)


@pytest.fixture
def admin(keys: None, now: datetime) -> Person:
    return registered("admin@example.org", "Ada Admin", now=now, is_staff=True)


@pytest.fixture
def service_provider(db: None, now: datetime) -> ServiceProvider:
    provider, _secret = create_service_provider(
        name="Acme Payments",
        audience="http://127.0.0.1:8001",
        allowed=("read:calendar", "write:files", "transact:payments", "delete:files"),
        actor=TESTER,
        now=now,
    )
    return provider


@pytest.fixture
def agent(alice: Person, now: datetime) -> AgentClient:
    """Alice's active agent."""
    return enrol(alice.human, now=now)


@pytest.fixture
def reading(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    """A pending request with nothing dangerous."""
    return pending(
        agent, service_provider, now=now, capabilities=[READ_CALENDAR], reason="To find a slot"
    )


@pytest.fixture
def paying(agent: AgentClient, service_provider: ServiceProvider, now: datetime) -> Grant:
    """A pending request to read and to pay, with limits."""
    envelope = {
        "max_requests_per_minute": 30,
        "budgets": [
            {"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}
        ],
        "confirm_above": {"value": "50.00", "currency": "EUR"},
    }
    return pending(
        agent, service_provider, now=now, capabilities=[READ_CALENDAR, PAY], envelope=envelope
    )
