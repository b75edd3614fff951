"""Monthly partitions under test: shifted clocks, the partition of an event, and cleaning up."""

from collections.abc import Iterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connection

from audit import new_ids
from audit.db import partition_creation
from audit.db.partition_creation import Month, month_at
from audit.tests.tampering import execute

_ALL = """
SELECT relname FROM pg_inherits JOIN pg_class ON oid = inhrelid
WHERE inhparent = 'audit_event'::regclass ORDER BY relname
"""


def found(sql: str, *values: Any) -> list[Any]:
    """The first column of the result."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values or None)
        return [row[0] for row in cursor.fetchall()]


def standing() -> set[str]:
    """The names of all partitions."""
    return set(found(_ALL))


def place_of(pk: object) -> str:
    """The name of the partition that holds the event."""
    (name,) = found("SELECT tableoid::regclass::text FROM audit_event WHERE id = %s", pk)
    return str(name)


def months_on(number: int) -> Month:
    """The month `number` months from now."""
    return month_at(datetime.now().astimezone()).later(number)


def set_clock(monkeypatch: pytest.MonkeyPatch, at: datetime) -> None:
    """Make ids as if it were `at`; the database's clock is unchanged."""
    clock = SimpleNamespace(time_ns=lambda: int(at.timestamp() * 1000) * 1_000_000)
    monkeypatch.setattr(new_ids, "time", clock)


def empty_cache() -> None:
    """As in a process that has just started."""
    partition_creation.KNOWN = partition_creation._Known()


@pytest.fixture
def months(transactional_db: None) -> Iterator[set[str]]:
    """The partitions after migrating, with an empty cache. Other partitions are dropped afterwards.

    They are dropped before, too: a test on a clock years ahead commits the month of its events.
    """
    ours = {"audit_event_early", "audit_event_late"} | {
        months_on(by).partition for by in range(partition_creation.AHEAD + 1)
    }
    for extra in standing() - ours:
        execute(f"DROP TABLE {extra}")
    before = standing()
    empty_cache()
    yield before
    empty_cache()
    for extra in standing() - before:
        execute(f"DROP TABLE {extra}")
    for missing in before - standing():
        year, number = missing.split("_")[2:]
        execute("SELECT agentauth_add_event_month(%s)", Month(int(year), int(number)).start)
