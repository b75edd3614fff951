"""A log that continues under another name: its folder, its view of the previous log, its name."""

from datetime import datetime, timedelta
from io import BytesIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.notes import parse_note
from agentauth.sdk import verify_log as alone
from audit.checkpoints.copy_locations import MOVED, ContradictedError, key_of
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
from audit.stores.opening import store_at
from audit.tests import proving

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(signing: None, settings: Settings, tmp_path: Path) -> Store:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    return store_at(settings.AUDIT_STORE)


def broken(now: datetime, *, name: str = "20261129012233", lost: tuple[str, ...] = ()) -> LogBreak:
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


def test_a_log_is_named_after_every_other_even_where_the_clock_is_behind(now: datetime) -> None:
    assert new_name(now) == f"{now:%Y%m%d%H%M%S}"
    assert new_name(now, after="20990101000000") == "20990101000001"


def test_SA_13_no_log_is_named_after_the_last_possible_name(now: datetime) -> None:
    """A longer name would be read as foreign, and this log would not be found."""
    with pytest.raises(ContradictedError, match=r"breaks/20999999999999\.json"):
        new_name(now, after="20999999999999")


def test_a_log_continues_under_its_new_name_in_its_own_folder(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    assert checkpoint_log(now=now) == 3
    row = broken(now)
    proving.grow(2, now=now)
    assert checkpoint_log(now=now + EVERY) == 5
    note = store.get(f"log-{row.name}/{key_of(5)}")
    assert note is not None
    assert (
        parse_checkpoint(parse_note(note).text).origin
        == f"localhost:8000/v1/audit/{row.name}"
        == origin()
    )
    assert store.get(key_of(5)) is None
    assert store.get(key_of_break(row.name)) == break_record(row)
    assert checkpoint_log(now=now + 3 * EVERY) is None


def test_a_log_sees_the_part_of_the_previous_log_that_it_continues(
    store: Store, now: datetime
) -> None:
    """What the lost history signed and archived later stays outside, and is another log's."""
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
    ):  # What the lost history signed and archived later stays outside, as part of another log.
        store.put_once(key, b"before")
    seen = seen_from_log(store, [row])
    seen.put_once(key_of(501), b"after")
    seen.put_once("objects/11.parquet", b"after")
    assert (seen.get(key_of(500)), seen.get(key_of(501))) == (b"before", b"after")
    assert list(seen.keys("checkpoints/")) == [key_of(500), key_of(501)]
    assert list(seen.keys("checkpoints/", after=key_of(500))) == [key_of(501)]
    assert list(seen.keys("segments/")) == ["segments/00000000000000000000.json"]
    assert list(seen.keys("tile/")) == ["tile/0/001", "tile/1/000.p/2"]
    assert (seen.get("endings/00000000000000000001.json"), seen.get(MOVED)) == (None, b"before")
    assert store.get("objects/11.parquet") == b"after"
    assert seen.fetch("objects/00.parquet", into := BytesIO())
    assert into.getvalue() == b"before"


def test_a_log_begun_after_another_restore_is_known_as_lost(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    lost = LogBreak(
        name="20261129000000", previous="", size=1, root=b"r" * 32, signed=0, archived=0, at=now
    )
    store.put_once(key_of_break(lost.name), break_record(lost))
    with pytest.raises(ContradictedError, match="does not know"):
        check_breaks([])
    row = broken(now, lost=(lost.name,))
    copy_break(store)
    check_breaks([row])
    assert known_names() == {"", row.name, lost.name}
    assert [each.name for each in lineage(store)] == [row.name]


def test_AU_33_archive_verifier_reads_the_break_records_of_the_log(
    store: Store, now: datetime, tmp_path: Path
) -> None:
    proving.grow(3, now=now)
    first = broken(now, lost=("20261129000000", "20261129000001"))
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
    found = alone.breaks(tmp_path / "outside")
    assert [alone.break_name(each) for each in found] == [shown_break(first), shown_break(row)]
    assert [part.origin for part in alone.parts(found)] == [
        origin(""),
        origin(first.name),
        origin(row.name),
    ]


@pytest.mark.parametrize("name", ["20261129012233", "20261129012234"])
def test_a_record_that_counts_its_own_or_a_later_break_as_lost_is_refused(
    store: Store, now: datetime, name: str
) -> None:
    """Anyone who can write to the store could hide a break from verifiers of the archive."""
    proving.grow(3, now=now)
    broken(now, name="20261129012234")
    copy_break(store)
    planted = LogBreak(
        name="20261129012233", root=bytes(32), size=1, signed=0, archived=0, lost=[name], at=now
    )
    store.put_once(key_of_break(planted.name), break_record(planted))
    with pytest.raises(ContradictedError, match="the record of another break"):
        lineage(store)


def test_a_missing_record_of_an_earlier_break_is_refused(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    row = broken(now, name="20261129012234")
    row.previous = "20261129012233"
    store.put_once(key_of_break(row.name), break_record(row))
    with pytest.raises(ContradictedError, match=f"no {key_of_break(row.previous)}"):
        lineage(store)


def test_a_record_that_differs_from_our_break_is_refused(
    store: Store, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log that is whole does not excuse it."""
    proving.grow(3, now=now)
    row = broken(now)
    other = LogBreak(name=row.name, root=bytes(32), size=1, signed=0, archived=0, lost=[], at=now)
    store.put_once(key_of_break(row.name), break_record(other))
    with pytest.raises(ContradictedError, match="differs from the break"):
        check_breaks([row])
    with pytest.raises(SystemExit):
        call_command("verify_audit", "--accept-break", shown_break(row))
    assert "differs from the break" in capsys.readouterr().out


def test_a_break_that_is_not_where_the_tree_was_is_refused(store: Store, now: datetime) -> None:
    proving.grow(3, now=now)
    row = broken(now)
    row.root = b"r" * 32
    with pytest.raises(ContradictedError, match="are not the ones that the break"):
        check_breaks([row])


def test_verify_audit_shows_each_break_and_accepts_exactly_it(
    store: Store, now: datetime, capsys: pytest.CaptureFixture[str]
) -> None:
    proving.grow(3, now=now)
    checkpoint_log(now=now)
    row = broken(now)
    proving.grow(2, now=now + timedelta(hours=1))
    checkpoint_log(now=now + timedelta(hours=1))
    for accepted, code in ((), 1), (["--accept-break", shown_break(row)[:-1] + "x"], 1):
        with pytest.raises(SystemExit) as ended:
            call_command("verify_audit", *accepted)
        assert ended.value.code == code
        assert f"--accept-break {shown_break(row)}" in capsys.readouterr().out
    call_command("verify_audit", "--accept-break", shown_break(row))
    said = capsys.readouterr().out
    assert "THE LOG BREAKS after 3 events" in said
    assert "The log is whole: 5 events" in said
    with pytest.raises(CommandError):
        call_command("verify_audit", "--accept-break")
