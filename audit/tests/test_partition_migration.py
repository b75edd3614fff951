"""Events of a log older than its partitions are moved into months and back, with nothing lost."""

import importlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.db.migrations.executor import MigrationExecutor

from audit.log.sequencer import sequence_until_empty
from audit.models import Event
from audit.tests.conftest import MakeEvent
from audit.tests.months import found, months_on, place_of, set_clock, standing
from audit.tests.months import months as months  # noqa: PLC0414 — a fixture
from audit.tests.tampering import execute
from audit.verify.verification import verify_log

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
BEFORE, AFTER = "0004_grown", "0005_partitions"
_INDEXES = (
    "SELECT indexdef FROM pg_indexes WHERE tablename = 'audit_event' AND indexname <> "
    "'event_not_success' ORDER BY indexname"
)
_TRIGGERS = (
    "SELECT tgname FROM pg_trigger WHERE tgrelid = 'audit_event'::regclass AND NOT tgisinternal "
    "ORDER BY 1"
)
_KIND = "SELECT relkind::text FROM pg_class WHERE oid = 'audit_event'::regclass"


def migrate(*names: str) -> None:
    executor = MigrationExecutor(connection)
    targets = [("audit", name) for name in names] or executor.loader.graph.leaf_nodes()
    executor.migrate(targets)


@pytest.fixture
def migrating(months: set[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Small batches, so that few rows take several turns. Afterwards all migrations are applied."""
    monkeypatch.setattr(importlib.import_module(f"audit.migrations.{AFTER}"), "_BATCH", 4)
    yield
    migrate()


def rows() -> list[dict[str, Any]]:
    return [{**row, "salt": bytes(row["salt"])} for row in Event.objects.order_by("id").values()]


def test_a_filled_log_is_moved_into_months_and_back(
    migrating: None, make_event: MakeEvent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        make_event(data={"n": number}, personal={"name": "Alice"})
    scattered = [datetime(1980, 1, 1, tzinfo=UTC), datetime(2150, 1, 1, tzinfo=UTC)]
    scattered += [months_on(ahead).start for ahead in (-15, -15, -14, -1, 5, 20)]
    for at in scattered:
        set_clock(monkeypatch, at)
        make_event()
    sequence_until_empty(now=now)
    whole, indexes = rows(), found(_INDEXES)
    assert len(whole) == 14
    migrate(BEFORE)
    assert found(_KIND) == ["r"]
    assert rows() == whole
    assert found(_INDEXES) == [each.replace("ON ONLY", "ON") for each in indexes]
    assert found(_TRIGGERS) == ["audit_event_kept", "audit_event_not_emptied"]
    for refused in ("DELETE FROM audit_event", "TRUNCATE audit_event"):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            execute(refused)
    assert (
        found("SELECT relname FROM pg_class WHERE relname LIKE 'audit_event_2%%' AND relkind = 'r'")
        == []
    )
    functions = found("SELECT proname FROM pg_proc WHERE proname LIKE 'agentauth_%%' ORDER BY 1")
    assert functions == ["agentauth_keep", "agentauth_keep_receipt", "agentauth_refuse"]
    migrate(AFTER)
    assert found(_KIND) == ["p"]
    assert rows() == whole
    assert found(_INDEXES) == indexes
    assert {months_on(ahead).partition for ahead in (-15, -14, -1, 0, 1, 2, 3, 5, 20)} | {
        "audit_event_early",
        "audit_event_late",
    } == standing()
    assert place_of(whole[0]["id"]) == "audit_event_early"
    assert not found("SELECT relname FROM pg_class WHERE relname LIKE '%%aside%%'")
    migrate()
    assert verify_log().ok


def test_an_empty_log_goes_there_and_back(migrating: None) -> None:
    migrate(BEFORE)
    migrate(AFTER)
    assert len(standing()) == 6
    assert not Event.objects.exists()
