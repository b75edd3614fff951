"""Fixtures of the registry's tests: the cast of the story, made through the services."""

from datetime import datetime
from importlib import import_module
from typing import Any

import pytest

from kms.services import ensure_key
from registry.models import Human, ServiceProvider
from registry.services.people import create_human
from registry.services.service_providers import create_service_provider
from registry.tests.cast import TESTER, AgentClient, enrolled

ALLOWED = ("read:calendar", "write:files", "transact:payments", "read:mail")


@pytest.fixture(autouse=True)
def _urls(settings: Any) -> None:
    settings.STATIC_ROOT = None
    try:
        import_module("agentauth.urls")
    except ImportError:
        # While the pages are not built yet.
        settings.ROOT_URLCONF = "registry.urls"


@pytest.fixture
def alice(db: None, now: datetime) -> Human:
    return create_human(email="alice@example.org", name="Alice", actor=TESTER, now=now)


@pytest.fixture
def bob(db: None, now: datetime) -> Human:
    return create_human(email="bob@example.org", name="Bob", actor=TESTER, now=now)


@pytest.fixture
def mallory(db: None, now: datetime) -> Human:
    return create_human(email="mallory@example.org", name="Mallory", actor=TESTER, now=now)


@pytest.fixture
def provider_and_secret(db: None, now: datetime) -> tuple[ServiceProvider, str]:
    return create_service_provider(
        name="Acme Calendar",
        audience="http://127.0.0.1:8001/v1",
        allowed=ALLOWED,
        actor=TESTER,
        now=now,
    )


@pytest.fixture
def service_provider(provider_and_secret: tuple[ServiceProvider, str]) -> ServiceProvider:
    return provider_and_secret[0]


@pytest.fixture
def agent(alice: Human, now: datetime) -> AgentClient:
    """Alice's active agent."""
    return enrolled(alice, now=now)


@pytest.fixture
def token_key(db: None, now: datetime) -> None:
    ensure_key(purpose="token", actor=TESTER, now=now)
