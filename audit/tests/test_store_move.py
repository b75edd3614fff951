"""Renaming the store hides nothing: the log signs nothing there until it was moved by a command."""

import uuid
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from audit import kinds
from audit.archive import store_move
from audit.archive.archive_verification import prove_archive
from audit.archive.segment_writing import archive_audit, archive_due
from audit.checkpoints import signing as checkpoints
from audit.checkpoints.checkpoint_copies import MOVED, ContradictedError, StoreChangedError, key_of
from audit.checkpoints.endings_in_store import Ending, read_endings
from audit.checkpoints.signed_checkpoint_reading import read_stores
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.log.sequencer import sequence_until_empty, tree_of
from audit.models import Checkpoint, CheckpointCopy, Event, Head, LogBreak
from audit.stores import Sink
from audit.stores.folder import FolderStore
from audit.stores.store_factory import store_at
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import Grow, MakeEvent
from audit.tests.dying import dies_at
from audit.tests.tampering import as_table_owner, execute

pytestmark = pytest.mark.django_db


class Places:
    """The log's present store, and the new one."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self.settings, self.old, self.new = settings, folder / "old", folder / "new"

    def name(self, folder: Path | None) -> None:
        self.settings.AUDIT_STORE = f"file:{folder}" if folder else ""


@pytest.fixture
def places(signing: None, settings: Settings, tmp_path: Path, grow: Grow, now: datetime) -> Places:
    """Three events signed and archived in the old store, two unsigned; settings name a new one."""
    places = Places(settings, tmp_path)
    places.name(places.old)
    grow(3)
    assert checkpoint_log(now=now) == 3
    assert archive_audit(now=now, store=store_at(settings.AUDIT_STORE)) == (0, 3)
    grow(2)
    places.name(places.new)
    return places


def move(*arguments: str) -> dict[str, Any]:
    return json_of("move_audit_store", *arguments)


@pytest.mark.parametrize("named", ["new", None])
def test_SA_13_under_a_changed_store_nothing_is_signed(
    places: Places, now: datetime, named: str | None
) -> None:
    places.name(places.new if named else None)
    with pytest.raises(StoreChangedError, match="move_audit_store"):
        checkpoint_log(now=now + EVERY)
    assert Checkpoint.objects.count() == 1
    assert not places.new.exists()
    places.name(places.old)
    assert checkpoint_log(now=now + EVERY) == 5


def test_SA_13_under_a_changed_store_nothing_is_archived(places: Places, now: datetime) -> None:
    places.name(places.old)
    assert checkpoint_log(now=now + EVERY) == 5
    places.name(places.new)
    with pytest.raises(StoreChangedError):
        archive_due(now=now + 100 * EVERY)
    with pytest.raises(CommandError, match="move_audit_store"):
        call_command("archive_audit")
    assert not places.new.exists()


def test_SA_13_a_second_story_under_a_changed_store_is_not_signed(
    places: Places, grow: Grow, now: datetime
) -> None:
    """A database set back to the first checkpoint grows under a prefix without the later one."""
    places.name(places.old)
    kept = Head.objects.get()
    grow(1)
    checkpoint_log(now=now + EVERY)
    with as_table_owner():
        execute("DELETE FROM audit_leaf WHERE leaf_index >= 5")
        Head.objects.update(size=5, link=kept.link, peaks=kept.peaks)
        for table, column in (("checkpointcopy", "checkpoint_id"), ("checkpoint", "size")):
            execute(f"DELETE FROM audit_{table} WHERE {column} = 6")  # noqa: S608 — the names above
        places.name(places.new)
        with pytest.raises(StoreChangedError):
            checkpoint_log(now=now + 2 * EVERY)
        # The command refuses: the old store knows more than the database, so events were dropped.
        with pytest.raises(CommandError, match="set back"):
            move("--from", f"file:{places.old}")
        assert not (places.old / MOVED).exists()


def test_a_moved_store_has_everything_and_the_log_continues(
    places: Places, grow: Grow, now: datetime, settings: Settings
) -> None:
    files = {path.relative_to(places.old): path.read_bytes() for path in _files(places.old)}
    found = move("--from", f"file:{places.old}")
    assert found == {
        "from": f"file:{places.old}",
        "to": f"file:{places.new}",
        "objects": len(files),
        "lost": False,
    }
    assert {path.relative_to(places.new): path.read_bytes() for path in _files(places.new)} == files
    assert Event.objects.get(kind=kinds.STORE_MOVED).data == found
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now + EVERY) == 6
    assert archive_due(now=now + 100 * EVERY) == (3, 6)
    assert prove_archive(store=store_at(settings.AUDIT_STORE), now=now).ok
    # The old store still proves what it has.
    assert prove_archive(store=store_at(f"file:{places.old}"), now=now).ok


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def test_SA_13_in_a_store_that_was_left_nothing_is_signed_any_more(
    places: Places, grow: Grow, now: datetime
) -> None:
    """Neither a process with the old setting nor a database from before the move can sign there."""
    move("--from", f"file:{places.old}")
    sequence_until_empty(now=now)
    places.name(places.old)
    with pytest.raises(StoreChangedError, match="has left the store"):
        checkpoint_log(now=now + EVERY)
    with as_table_owner():
        CheckpointCopy.objects.filter(store=f"file:{places.new}").delete()
        with pytest.raises(StoreChangedError, match="has left the store"):
            checkpoint_log(now=now + EVERY)
    # The log does not return to it either.
    places.name(places.new)
    checkpoint_log(now=now + EVERY)
    places.name(places.old)
    with pytest.raises(CommandError, match="left"):
        move("--from", f"file:{places.new}")


@pytest.mark.parametrize("place", ["move.after_mark", "move.after_copy"])
def test_a_move_that_was_killed_is_ended_by_the_next(
    places: Places, now: datetime, place: str
) -> None:
    with dies_at(place, store_move):
        move("--from", f"file:{places.old}")
    for folder in (places.old, places.new):
        places.name(folder)
        with pytest.raises(StoreChangedError):
            checkpoint_log(now=now + EVERY)
    move("--from", f"file:{places.old}")
    assert Event.objects.filter(kind=kinds.STORE_MOVED).count() == 1
    assert checkpoint_log(now=now + EVERY) == 5


def test_a_lost_store_is_said_to_be_lost(places: Places, now: datetime) -> None:
    assert move("--lost") == {
        "from": f"file:{places.old}",
        "to": f"file:{places.new}",
        "objects": 1,
        "lost": True,
    }
    assert (places.new / key_of(3)).read_bytes() == (places.old / key_of(3)).read_bytes()
    assert checkpoint_log(now=now + EVERY) == 5


def test_a_new_store_that_knows_another_story_is_not_moved_to(places: Places) -> None:
    store_at(f"file:{places.new}").put_once(key_of(4), b"another story")
    for arguments in (["--lost"], ["--from", f"file:{places.old}"]):
        with pytest.raises(CommandError, match="The external store has a checkpoint"):
            move(*arguments)


def test_only_the_store_that_has_the_copies_is_moved(places: Places, tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="not in"):
        move("--from", f"file:{tmp_path / 'third'}")
    places.name(places.old)
    with pytest.raises(CommandError, match="nothing to move"):
        move("--lost")
    places.name(None)
    with pytest.raises(CommandError, match="AUDIT_STORE is not set"):
        move("--lost")


def test_the_command_says_what_it_did(places: Places) -> None:
    said = output_of("move_audit_store", "--from", f"file:{places.old}")
    assert said.startswith("Copied ")
    assert ContradictedError.code == StoreChangedError.code


def test_the_command_says_what_it_could_not_read(places: Places) -> None:
    said = output_of("move_audit_store", "--lost")
    assert f"Anything else in file:{places.old} was not read" in said


def test_a_listed_object_that_does_not_come_stops_the_move(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetch = FolderStore.fetch

    def lacking(self: FolderStore, key: str, into: Sink) -> bool:
        return not key.startswith("objects/") and fetch(self, key, into)

    with monkeypatch.context() as patch:
        patch.setattr(FolderStore, "fetch", lacking)
        with pytest.raises(CommandError, match=r"lists objects/.* but does not return it"):
            move("--from", f"file:{places.old}")
    assert not Event.objects.filter(kind=kinds.STORE_MOVED).exists()
    assert move("--from", f"file:{places.old}")["objects"]


def test_verify_audit_names_the_store_that_it_did_not_read(places: Places, now: datetime) -> None:
    move("--from", f"file:{places.old}")
    assert checkpoint_log(now=now + EVERY) == 5
    for more, is_named in (((), True), (("--store", f"file:{places.old}"), False)):
        said = output_of("verify_audit", *more)
        assert (f"also copied to file:{places.old}, which was not" in said) is is_named


@pytest.mark.parametrize(
    ("former", "read"),
    [
        ("s3://old-bucket/log", "s3://old-bucket/log?region=eu-west-1"),
        ("file:/srv/log", "file:/srv/log"),
    ],
)
def test_a_former_store_is_read_with_the_options_of_the_present(
    settings: Settings, now: datetime, former: str, read: str
) -> None:
    """Rows name a store without its options."""
    settings.AUDIT_STORE = "s3://new-bucket/log?region=eu-west-1"
    row = Checkpoint.objects.create(size=1, root=bytes(32), note="", at=now)
    CheckpointCopy.objects.create(checkpoint=row, store=former, at=now)
    assert read_stores() == [settings.AUDIT_STORE, read]


def test_SA_13_a_log_that_went_on_after_a_restore_can_be_moved(
    places: Places, grow: Grow, now: datetime
) -> None:
    """What the restore lost is in the old store but does not count; the mark always does."""
    store_at(f"file:{places.old}").put_once(key_of(4), b"what was lost")
    with pytest.raises(CommandError, match="The external store has a checkpoint"):
        move("--from", f"file:{places.old}")
    size = Head.objects.get().size
    root = tree_of(Head.objects.get()).root()
    LogBreak.objects.create(
        name="20261129010203", size=size, root=root, signed=3, archived=3, at=now
    )
    assert move("--from", f"file:{places.old}")["objects"]
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now + EVERY) == size + 1
    assert (places.new / f"log-20261129010203/{key_of(size + 1)}").exists()
    places.name(places.old)
    with as_table_owner():
        CheckpointCopy.objects.filter(store=f"file:{places.new}").delete()
        with pytest.raises(StoreChangedError, match="has left the store"):
            checkpoint_log(now=now + 2 * EVERY)


@pytest.mark.parametrize("place", ["checkpoint.after_commit", "checkpoint.before_copied"])
def test_SA_13_a_late_process_with_the_old_setting_does_not_stop_the_log(
    places: Places,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    make_event: MakeEvent,
    place: str,
) -> None:
    """It signs, sleeps through the whole move, and then copies what it signed to the old store."""
    grant = uuid.UUID(int=2)
    make_event(kind=kinds.GRANT_REVOKED, grant_id=grant)
    sequence_until_empty(now=now)

    def sleep(name: str) -> None:
        if name == place and Event.objects.filter(kind=kinds.STORE_MOVED).count() == 0:
            places.name(places.new)
            move("--from", f"file:{places.old}")
            places.name(places.old)

    places.name(places.old)
    monkeypatch.setattr(checkpoints, "fault_point", sleep)
    awake = (
        nullcontext() if place == "checkpoint.before_copied" else pytest.raises(StoreChangedError)
    )
    with awake:
        checkpoint_log(now=now + EVERY)
    places.name(places.new)
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now + 2 * EVERY) == 7
    # Together with the endings before it.
    assert {path.name for path in (places.new / "checkpoints").iterdir()} >= {
        f"{size:020d}" for size in (3, 6, 7)
    }
    ended = read_endings(store_at(f"file:{places.new}"), "", after=3)
    assert list(ended) == [Ending(kinds.GRANT_REVOKED, str(grant))]


def test_what_no_key_can_name_stays_in_the_old_store(places: Places, now: datetime) -> None:
    (places.old / "READ ME").write_bytes(b"")
    move("--from", f"file:{places.old}")
    assert checkpoint_log(now=now + EVERY) == 5
    assert not (places.new / "READ ME").exists()
