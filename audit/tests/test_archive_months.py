"""On PostgreSQL, events are restored from the archive into a month that was dropped."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from audit.archive.restoring import Restored, restore_audit
from audit.db.partition_dropping import drop_month
from audit.models import Event
from audit.stores.folder import FolderStore
from audit.tests.archived import Log
from audit.tests.conftest import MakeEvent
from audit.tests.months import months as months  # noqa: PLC0414 — a fixture
from audit.tests.months import months_on, set_clock, standing
from audit.tests.tampering import as_table_owner, execute
from audit.tests.test_signed_checkpoint_reading import command
from audit.verify.verification import verify_log

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def test_a_dropped_month_is_made_again_for_what_comes_home(
    months: set[str],
    make_event: MakeEvent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    log = Log(
        make_event, datetime.now(UTC), FolderStore(tmp_path / "archive"), tmp_path / "archive"
    )
    log.grow(3)
    past = months_on(-7)
    with monkeypatch.context() as patch:
        set_clock(patch, past.start)
        log.grow(2)
    log.grow(1)
    log.sign()
    assert log.archive() == [(0, 6)]
    rows = list(Event.objects.order_by("id").values())
    execute(f"DROP TABLE {past.partition}")
    assert Event.objects.count() == 4
    assert restore_audit(store=log.store) == Restored(segments=1, events=6, restored=2)
    assert past.partition in standing()
    assert list(Event.objects.order_by("id").values()) == rows
    assert verify_log().ok


def test_AU_3_a_check_continues_over_dropped_and_restored_months(
    months: set[str],
    make_event: MakeEvent,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    now, past = datetime.now(UTC), months_on(-7)
    log = Log(make_event, now, FolderStore(tmp_path / "archive"), tmp_path / "archive")
    with monkeypatch.context() as patch:
        set_clock(patch, past.start)
        log.grow(3)
    log.grow(2)
    log.sign()
    assert log.archive() == [(0, 5)]
    assert command()["state_kept"]

    def round_of_runs() -> list[bool]:
        found = [command("--runs", "2") for _ in range(2)]
        assert [each["checked_from"] for each in found] == [5, 5]
        return [each["ok"] for each in found]

    drop_month(month=past, now=now, prove=lambda _first, _last: None)
    assert Event.objects.count() == 2
    assert round_of_runs() == [True, True]
    assert restore_audit(store=log.store).restored == 3
    assert round_of_runs() == [True, True]
    with as_table_owner():
        Event.objects.filter(leaf__leaf_index=1).update(reason="forgiven")
        assert False in round_of_runs()
