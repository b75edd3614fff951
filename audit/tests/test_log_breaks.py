"""A log that continues under another name: its folder, its view of the previous log, its name."""

from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.signed_notes import parse_note
from agentauth.sdk import verify_log as archive_verifier
from audit.checkpoints.checkpoint_copies import MOVED, ContradictedError, key_of
from audit.checkpoints.log_breaks import (
    break_record,
    check_breaks,
    copy_break,
    key_of_break,
    known_names,
    lineage,
    new_name,
    origin,
    seen_from_log,
    shown_break,
)
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.log.sequencer import tree_of
from audit.models import Checkpoint, Head, LogBreak
from audit.stores import Store
from audit.stores.store_factory import store_at
from audit.tests import proving

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(signing: None, settings: Settings, tmp_path: Path) -> Store:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    return store_at(settings.AUDIT_STORE)


def record_break(
    now: datetime, *, name: str = "20261129012233", lost: tuple[str, ...] = ()
) -> LogBreak:
    """Break the log here, as `continue_after_restore` records it."""
    head = Head.objects.get()
    newest = Checkpoint.objects.order_by("-size").first()
    return LogBreak.objects.create(
        name=name,
        previous="",
        size=head.size,
        root=tree_of(head).root(),
        signed=newest.size if newest else 0,
        archived=0,
        lost=list(lost),
        at=now,
    )


def test_new_log_name_sorts_after_all_others_even_with_a_slow_clock(now: datetime) -> None:
    assert new_name(now) == f"{now:%Y%m%d%H%M%S}"
    assert new_name(now, after="20990101000000") == "20990101000001"


def test_SA_13_log_name_overflow_is_refused(now: datetime) -> None:
    """A longer name would not match the name pattern, so the log would be ignored."""
    with pytest.raises(ContradictedError, match=r"breaks/20999999999999\.json"):
        new_name(now, after="20999999999999")


def test_a_log_continues_under_its_new_name_in_its_own_folder(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    assert checkpoint_log(now=now) == 3
    row = record_break(now)
    proving.grow(2, now=now)
    assert checkpoint_log(now=now + EVERY) == 5
    note = store.get(f"log-{row.name}/{key_of(5)}")
    assert note is not None
    assert origin() == f"localhost:8000/v1/audit/{row.name}"
    assert parse_checkpoint(parse_note(note).text).origin == origin()
    assert store.get(key_of(5)) is None
    assert store.get(key_of_break(row.name)) == break_record(row)
    assert checkpoint_log(now=now + 3 * EVERY) is None


@pytest.fixture
def seen(store: Store, now: datetime) -> Store:
    """What a log that continues after 500 events sees of the store.

    What the lost history signed and archived later stays outside, as part of another log.
    """
    row = LogBreak(name="20261129012233", previous="", size=600, signed=500, archived=512, at=now)
    for key in (
        key_of(500),
        key_of(501),
        "segments/00000000000000000000.json",
        "segments/00000000000000000512.json",
        "tile/0/001",
        "tile/0/002",
        "tile/1/000.p/2",
        "tile/1/000.p/3",
        "objects/00.parquet",
        "endings/00000000000000000001.json",
        MOVED,
    ):
        store.put_once(key, b"before")
    return seen_from_log(store, [row])


def test_log_gets_the_previous_logs_objects_up_to_the_break(seen: Store) -> None:
    assert (seen.get(key_of(500)), seen.get(key_of(501))) == (b"before", None)
    assert (seen.get("endings/00000000000000000001.json"), seen.get(MOVED)) == (None, b"before")


def test_log_lists_the_previous_logs_keys_up_to_the_break(seen: Store) -> None:
    seen.put_once(key_of(501), b"after")
    assert list(seen.keys("checkpoints/")) == [key_of(500), key_of(501)]
    assert list(seen.keys("checkpoints/", after=key_of(500))) == [key_of(501)]
    assert list(seen.keys("segments/")) == ["segments/00000000000000000000.json"]
    assert list(seen.keys("tile/")) == ["tile/0/001", "tile/1/000.p/2"]


def test_log_puts_what_follows_the_break_in_its_own_folder(store: Store, seen: Store) -> None:
    seen.put_once(key_of(501), b"after")
    seen.put_once("objects/11.parquet", b"after")
    assert seen.get(key_of(501)) == b"after"
    assert store.get(key_of(501)) == b"before"
    # Objects are named by their content, so all logs share them.
    assert store.get("objects/11.parquet") == b"after"


def test_log_fetches_an_object_of_the_previous_log(seen: Store) -> None:
    into = BytesIO()
    assert seen.fetch("objects/00.parquet", into)
    assert into.getvalue() == b"before"


def test_break_of_an_abandoned_log_is_recorded_as_lost(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    lost = LogBreak(
        name="20261129000000", previous="", size=1, root=b"r" * 32, signed=0, archived=0, at=now
    )
    store.put_once(key_of_break(lost.name), break_record(lost))
    with pytest.raises(ContradictedError, match="does not know"):
        check_breaks([])
    row = record_break(now, lost=(lost.name,))
    copy_break(store)
    check_breaks([row])
    assert known_names() == {"", row.name, lost.name}
    assert [each.name for each in lineage(store)] == [row.name]


def test_AU_33_archive_verifier_reads_the_break_records_of_the_log(
    store: Store, now: datetime, tmp_path: Path
) -> None:
    proving.grow(3, now=now)
    first = record_break(now, lost=("20261129000000", "20261129000001"))
    row = LogBreak(
        name="20261129012234",
        previous=first.name,
        size=3,
        root=first.root,
        signed=3,
        archived=0,
        at=now,
    )
    copy_break(store)
    store.put_once(key_of_break(row.name), break_record(row))
    found = archive_verifier.breaks(tmp_path / "outside")
    assert [archive_verifier.break_name(each) for each in found] == [
        shown_break(first),
        shown_break(row),
    ]
    assert [part.origin for part in archive_verifier.parts(found)] == [
        origin(""),
        origin(first.name),
        origin(row.name),
    ]


@pytest.mark.parametrize("name", ["20261129012233", "20261129012234"])
def test_break_record_that_lists_itself_or_a_later_break_is_refused(
    store: Store, now: datetime, name: str
) -> None:
    """Anyone who can write to the store could hide a break from verifiers of the archive."""
    proving.grow(3, now=now)
    record_break(now, name="20261129012234")
    copy_break(store)
    planted = LogBreak(
        name="20261129012233", root=bytes(32), size=1, signed=0, archived=0, lost=[name], at=now
    )
    store.put_once(key_of_break(planted.name), break_record(planted))
    with pytest.raises(ContradictedError, match="the record of another break"):
        lineage(store)


def test_a_missing_record_of_an_earlier_break_is_refused(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    row = record_break(now, name="20261129012234")
    row.previous = "20261129012233"
    store.put_once(key_of_break(row.name), break_record(row))
    with pytest.raises(ContradictedError, match=f"no {key_of_break(row.previous)}"):
        lineage(store)


def test_a_record_that_differs_from_our_break_is_refused(
    store: Store, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused even if the log itself verifies."""
    proving.grow(3, now=now)
    row = record_break(now)
    other = LogBreak(name=row.name, root=bytes(32), size=1, signed=0, archived=0, lost=[], at=now)
    store.put_once(key_of_break(row.name), break_record(other))
    with pytest.raises(ContradictedError, match="differs from the break"):
        check_breaks([row])
    with pytest.raises(SystemExit):
        call_command("verify_audit", "--accept-break", shown_break(row))
    assert "differs from the break" in capsys.readouterr().out


def test_break_whose_root_differs_from_our_tree_is_refused(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    row = record_break(now)
    row.root = b"r" * 32
    with pytest.raises(ContradictedError, match="are not the ones that the break"):
        check_breaks([row])


def test_verify_audit_shows_each_break_and_accepts_exactly_it(
    store: Store, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    proving.grow(3, now=now)
    checkpoint_log(now=now)
    row = record_break(now)
    proving.grow(2, now=now + timedelta(hours=1))
    checkpoint_log(now=now + timedelta(hours=1))
    name, size, _root = shown_break(row).split(":")
    other_root = f"{name}:{size}:{'0' * 64}"
    for accepted in [], ["--accept-break", other_root]:
        with pytest.raises(SystemExit) as ended:
            call_command("verify_audit", *accepted)
        assert ended.value.code == 1
        assert f"--accept-break {shown_break(row)}" in capsys.readouterr().out
    call_command("verify_audit", "--accept-break", shown_break(row))
    said = capsys.readouterr().out
    assert "THE LOG BREAKS after 3 events" in said
    assert "The log is whole: 5 events" in said
    with pytest.raises(CommandError):
        call_command("verify_audit", "--accept-break")
