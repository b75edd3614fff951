"""Fixtures of the audit tests."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.db import connection, transaction

from audit import kinds
from audit.models import Event
from audit.services import Actor, record

MakeEvent = Callable[..., Event]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests of roles and of concurrent transactions need PostgreSQL: elsewhere they are not collected."""
    if connection.vendor == "postgresql":
        return
    here = [
        item for item in items if "/audit/tests/" in str(item.path) and item.get_closest_marker("postgres")
    ]
    if here:
        config.hook.pytest_deselected(items=here)
        items[:] = [item for item in items if item not in here]


@pytest.fixture
def make_event(now: datetime) -> MakeEvent:
    """Records one event in a transaction of its own; keyword arguments override."""

    def make(**overrides: Any) -> Event:
        arguments: dict[str, Any] = {
            "kind": kinds.REQUEST_REFUSED,
            "actor": Actor("agent", "0192f1c8-0000-7000-8000-000000000001", "request-1"),
            "at": now,
        }
        with transaction.atomic():
            return record(**(arguments | overrides))

    return make
