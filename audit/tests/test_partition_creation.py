"""Monthly partitions on PostgreSQL: each event finds its own, with any creator, at any clock.

A missing partition is created by the process that records.
"""

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from django.conf import settings
from django.db import Error, IntegrityError, connection, transaction

from audit.db import partition_creation
from audit.db.partition_creation import AHEAD, Month, create_partitions, month_at, month_of
from audit.models import Event
from audit.services import record_many
from audit.tests.conftest import MakeEvent
from audit.tests.months import empty_cache, found, months_on, place_of, set_clock, standing
from audit.tests.months import months as months  # noqa: PLC0414 — a fixture
from audit.tests.tampering import execute
from audit.tests.test_record_many import entry

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]
ENDS = {"audit_event_early", "audit_event_late"}
MILLISECOND = timedelta(milliseconds=1)


@pytest.fixture
def event_at(make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], Event]:
    """A function that records an event on a host whose clock shows `at`."""

    def make(at: datetime) -> Event:
        set_clock(monkeypatch, at)
        return make_event()

    return make


def test_migration_makes_current_and_future_months_without_a_default(
    months: set[str],
) -> None:
    assert months == ENDS | {months_on(ahead).partition for ahead in range(AHEAD + 1)}
    assert found("SELECT partdefid::text FROM pg_partitioned_table") == ["0"]


def test_a_month_takes_the_ids_from_its_first_millisecond_to_its_last(
    months: set[str], event_at: Callable[[datetime], Event]
) -> None:
    """For every month of three years, Python and the database agree."""
    for ahead in range(-20, 36):
        month = months_on(ahead)
        for at in (month.start, month.later(1).start - MILLISECOND):
            event = event_at(at)
            assert place_of(event.pk) == month.partition
            assert month_of(event.pk) == month_of(str(event.pk)) == month
        assert place_of(event_at(month.start - MILLISECOND).pk) == month.later(-1).partition
    execute("DELETE FROM audit_queueentry")
    assert month_of(uuid.UUID(int=months_on(0).first_id.int)) == months_on(0)
    assert month_of(uuid.UUID(int=months_on(0).first_id.int - 1)) == months_on(-1)


def test_a_month_is_counted_in_utc() -> None:
    turn = datetime.fromisoformat("2026-12-01T00:30:00+01:00")
    assert month_at(turn) == Month(2026, 11)
    assert [str(Month(2026, 11).later(by)) for by in (-11, -10, 0, 2, 26)] == [
        "2025-12", "2026-01", "2026-11", "2027-01", "2029-01",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "at",
    [
        datetime(1970, 1, 1, tzinfo=UTC),
        datetime(2024, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC),
        datetime(2100, 1, 1, tzinfo=UTC),
        datetime(9999, 12, 31, tzinfo=UTC),
    ],
)
def test_what_a_clock_says_that_is_decades_off_is_recorded_too(
    months: set[str], event_at: Callable[[datetime], Event], at: datetime
) -> None:
    assert place_of(event_at(at).pk) in ENDS
    assert standing() == months


def test_ids_of_no_time_at_all_are_recorded_too(months: set[str], now: datetime) -> None:
    made = [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), *(uuid.uuid4() for _ in range(10))]
    with transaction.atomic():
        record_many([entry(id=str(pk)) for pk in made], now=now)
    assert Event.objects.filter(pk__in=made).count() == 12


@pytest.mark.parametrize("ahead", [AHEAD + 1, 12, 35, -1, -12])
def test_OG_20_event_succeeds_after_months_without_jobs_or_clock_jump(
    months: set[str], event_at: Callable[[datetime], Event], ahead: int
) -> None:
    month = months_on(ahead)
    assert month.partition not in months
    assert place_of(event_at(month.start).pk) == month.partition
    # The next event of the month, and a batch across the turn of the month.
    event_at(month.start + timedelta(days=1))
    ids = [str(uuid.UUID(int=each.first_id.int + 5)) for each in (month.later(1), month)]
    with transaction.atomic():
        record_many([entry(id=pk) for pk in ids], now=datetime.now(UTC))
    assert [place_of(pk) for pk in ids] == [month.later(1).partition, month.partition]


def test_month_lookup_is_cached_between_events(months: set[str], make_event: MakeEvent) -> None:
    asked: list[str] = []

    def listen(execute: Callable[..., object], sql: str, *rest: object) -> object:
        asked.append(sql)
        return execute(sql, *rest)

    with connection.execute_wrapper(listen):
        for _ in range(6):
            make_event()
    assert sum("pg_inherits" in sql for sql in asked) == 1


def test_a_month_is_asked_about_again_after_an_hour(
    months: set[str], make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_event()
    execute("DELETE FROM audit_queueentry")
    for missing in months - ENDS:
        execute(f"DROP TABLE {missing}")
    monkeypatch.setattr(partition_creation, "KNOWN_SECONDS", 0.0)
    empty_cache()
    # Another transaction created it after this one asked.
    assert place_of(make_event().pk) == months_on(0).partition
    assert not partition_creation.KNOWN.hold(0, 0)


def test_existence_of_a_droppable_month_is_never_cached(
    months: set[str], event_at: Callable[[datetime], Event]
) -> None:
    old = months_on(-4)
    for _ in range(3):
        assert place_of(event_at(old.start).pk) == old.partition
        execute("DELETE FROM audit_queueentry")
        execute(f"DROP TABLE {old.partition}")


def test_month_in_use_by_a_transaction_cannot_be_dropped(months: set[str]) -> None:
    old = months_on(-4)
    with transaction.atomic():
        partition_creation.ensure_partitions([old.first_id])
        with closing(connection.copy()) as other, other.cursor() as cursor:
            cursor.execute("SET lock_timeout = '50ms'")
            with pytest.raises(Error, match="lock timeout"):
                cursor.execute(f"DROP TABLE {old.partition}")


def test_a_month_stays_where_the_one_who_had_it_made_is_rolled_back(
    months: set[str], event_at: Callable[[datetime], Event]
) -> None:
    month = months_on(7)
    with transaction.atomic():
        event_at(month.start)
        transaction.set_rollback(True)
    assert not Event.objects.exists()
    assert place_of(event_at(month.start).pk) == month.partition


# --- Making months ---


def test_task_creates_the_coming_partitions_once(months: set[str]) -> None:
    then = months_on(9)
    assert create_partitions(now=then.start) == [
        then.later(ahead).partition for ahead in range(AHEAD + 1)
    ]
    assert create_partitions(now=then.start) == []


def test_creating_a_month_neither_blocks_nor_waits_for_writers(
    months: set[str], make_event: MakeEvent
) -> None:
    month = months_on(6)
    with closing(connection.copy()) as other, other.cursor() as cursor:
        cursor.execute("SET lock_timeout = '200ms'")
        with transaction.atomic():
            make_event()
            cursor.execute("SELECT agentauth_add_event_month(%s)", [month.start])
        cursor.execute("BEGIN")
        cursor.execute("SELECT agentauth_add_event_month(%s)", [month.later(1).start])
        # The other transaction is still open; a process that does not need its month does not wait.
        execute("SET lock_timeout = '200ms'")
        make_event()
        cursor.execute("ROLLBACK")
    execute("SET lock_timeout = '5s'")
    assert month.partition in standing()
    assert month.later(1).partition not in standing()


def test_events_recorded_at_once_in_months_that_are_missing_are_all_there(
    months: set[str], make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch, now: datetime
) -> None:
    gate, failures = threading.Barrier(4), []

    def write(months_ahead: list[int]) -> None:
        try:
            for ahead in months_ahead:
                gate.wait()
                pk = str(uuid.UUID(int=months_on(ahead).first_id.int + threading.get_ident()))
                with transaction.atomic():
                    record_many([entry(id=pk)], now=now)
        except Exception as error:  # noqa: BLE001 — handed to the test below
            failures.append(error)
            gate.abort()
        finally:
            connection.close()

    rounds = list(range(4, 34))
    threads = [
        threading.Thread(target=write, args=[order])
        for order in (rounds, rounds, rounds[::-1], rounds[::-1])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert Event.objects.count() == 4 * len(rounds)


def test_two_processes_at_once_at_the_turn_of_each_month(months: set[str]) -> None:
    """Each round, both record in a missing month; the months are dropped and tried again."""
    parts = urlsplit(settings.DATABASE_URL)
    address = urlunsplit(parts._replace(path=f"/{connection.settings_dict['NAME']}"))
    command = [sys.executable, "-m", "audit.tests.recording"]
    processes = [
        subprocess.Popen(
            command,
            cwd=Path(__file__).resolve().parents[2],
            env=os.environ | {"DATABASE_URL": address},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        assert [_line(process) for process in processes] == ["ready"] * 2
        rounds = [months_on(ahead) for ahead in (*range(-20, 0), *range(4, 34))] * 3
        for number, month in enumerate(rounds):
            for process in processes:
                assert process.stdin
                process.stdin.write(f"{int(month.start.timestamp() * 1000)}\n")
                process.stdin.flush()
            assert [_line(process) for process in processes] == ["ok"] * 2
            if month < months_on(-2) and number % 2:
                # No process remembers this month, so it may be dropped.
                execute(f"DROP TABLE {month.partition}")
        kept = Event.objects.count()
    finally:
        for process in processes:
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0]
    assert kept > len(rounds)


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return str(process.stdout.readline()).strip()


def test_so_many_months_far_ahead_and_no_more(months: set[str]) -> None:
    for ahead in range(37, 37 + 24):
        execute("SELECT agentauth_add_event_month(%s)", months_on(ahead).start)
    for asked in (months_on(37 + 24), months_on(500)):
        with pytest.raises(Error, match="years ahead"):
            execute("SELECT agentauth_add_event_month(%s)", asked.start)
    # Near months can still be made, and existing ones are no error.
    execute("SELECT agentauth_add_event_month(%s)", months_on(36).start)
    execute("SELECT agentauth_add_event_month(%s)", months_on(37).start)
    for nonsense in ("NULL", "'infinity'", "'-infinity'", "'1970-01-01'", "'9999-01-01'"):
        assert found(f"SELECT agentauth_add_event_month({nonsense})") == [False]
    assert len(standing() - months) == 25


def test_unrelated_table_with_the_months_name_is_an_error(months: set[str]) -> None:
    month = months_on(8)
    execute(f"CREATE TABLE {month.partition} (id uuid)")
    try:
        with pytest.raises(Error, match="already exists"):
            execute("SELECT agentauth_add_event_month(%s)", month.start)
    finally:
        execute(f"DROP TABLE {month.partition}")


# --- What holds for the table holds for its months ---


def test_AU_27_rows_of_a_partition_never_change_by_its_own_name(
    months: set[str], event_at: Callable[[datetime], Event]
) -> None:
    places = {
        place_of(event_at(at).pk)
        for at in (datetime.now(UTC), months_on(8).start, datetime(1999, 1, 1, tzinfo=UTC))
    }
    assert len(places) == 3
    for place in places:
        for act in ("UPDATE {} SET reason = 'x'", "DELETE FROM {}", "TRUNCATE {}"):
            with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
                execute(act.format(place))
    with pytest.raises(IntegrityError), transaction.atomic():
        execute("UPDATE audit_event SET outcome = 'perhaps'")


def test_a_partition_has_the_indexes_and_the_check_of_the_table(
    months: set[str], event_at: Callable[[datetime], Event]
) -> None:
    place = place_of(event_at(months_on(8).start).pk)
    for name in (place, months_on(0).partition, "audit_event_early"):
        parents = found(
            "SELECT inhparent::regclass::text FROM pg_index JOIN pg_inherits ON inhrelid = "
            "indexrelid"
            " WHERE indrelid = %s::regclass ORDER BY 1",
            name,
        )
        assert parents == [
            "audit_event_pkey",
            "event_agent",
            "event_grant",
            "event_human",
            "event_kind",
            "event_not_success",
        ]
        checks = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'"
        assert found(checks, name) == ["event_outcome"]
