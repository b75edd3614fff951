"""The log signs its state once a minute if it has grown, and never a second history."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from pytest_django.fixtures import Settings

from agentauth.protocol.checkpoint import open_checkpoint
from agentauth.protocol.encoding import b64_encode
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.archive.segment_writing import archive_audit
from audit.checkpoints import log_breaks, signer_lookup, signing
from audit.checkpoints.checkpoint_copies import ContradictedError, key_of
from audit.checkpoints.log_breaks import check_records, origin
from audit.checkpoints.rollback_check import check_history
from audit.checkpoints.signing import EVERY, checkpoint_log, newest_checkpoint
from audit.log.tree_reader import root_at
from audit.models import Checkpoint, CheckpointCopy, Head, Leaf
from audit.stores import ImmutableError, Store
from audit.stores.store_factory import store_at
from audit.tests.conftest import Grow
from audit.tests.signing import sign_with, verifier
from audit.tests.tampering import as_table_owner, execute

pytestmark = pytest.mark.django_db


@pytest.fixture
def folder(settings: Settings, tmp_path: Path) -> Path:
    sign_with(settings, f"file:{tmp_path / 'log'}")
    return tmp_path / "log"


def test_first_events_are_signed_at_once_and_stored_outside(
    folder: Path, grow: Grow, now: datetime
) -> None:
    assert checkpoint_log(now=now) is None
    grow(3)
    assert checkpoint_log(now=now) == 3
    row = Checkpoint.objects.get()
    opened = open_checkpoint(row.note, log_keys=[verifier()], expected_origin=origin())
    assert (opened.checkpoint.size, opened.checkpoint.root) == (3, root_at(3))
    assert (row.size, bytes(row.root), row.at) == (3, root_at(3), now)
    assert origin() == "localhost:8000/v1/audit"
    assert (folder / key_of(3)).read_text() == row.note
    assert CheckpointCopy.objects.get().checkpoint == row


def test_it_is_signed_again_after_a_minute_if_there_is_news(
    folder: Path, grow: Grow, now: datetime
) -> None:
    grow(1)
    checkpoint_log(now=now)
    assert checkpoint_log(now=now + EVERY) is None
    grow(1)
    assert checkpoint_log(now=now + EVERY - timedelta(seconds=1)) is None
    assert checkpoint_log(now=now + EVERY) == 2


def test_clock_set_back_does_not_stop_checkpoints(folder: Path, grow: Grow, now: datetime) -> None:
    grow(1)
    checkpoint_log(now=now)
    grow(1)
    assert checkpoint_log(now=now - timedelta(days=1)) == 2


def test_without_a_store_it_is_signed_all_the_same(
    folder: Path, settings: Settings, grow: Grow, now: datetime
) -> None:
    settings.AUDIT_STORE = ""
    grow(1)
    assert checkpoint_log(now=now) == 1
    assert not folder.exists()


def test_AU_11_another_signer_at_the_same_size_changes_nothing(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(2)
    real = signer_lookup.audit_signer

    def slower(*, now: datetime) -> Any:
        monkeypatch.setattr(signing, "audit_signer", real)
        assert checkpoint_log(now=now - timedelta(seconds=1)) == 2
        return real(now=now)

    monkeypatch.setattr(signing, "audit_signer", slower)
    assert checkpoint_log(now=now) == 2
    assert Checkpoint.objects.get().at == now - timedelta(seconds=1)
    assert CheckpointCopy.objects.count() == 1


class Failing:
    """A store whose put reports failure, before or after it took effect."""

    def __init__(self, real: Store, *, done: bool) -> None:
        self._real, self._done = real, done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def put_once(self, key: str, data: bytes) -> None:
        if self._done:
            self._real.put_once(key, data)
        raise TemporarilyUnavailableError("The store did not answer.")


@pytest.mark.parametrize("done", [False, True])
def test_AU_12_copy_reported_as_failed_is_made_at_the_next_run(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    grow(2)
    with monkeypatch.context() as patch:
        patch.setattr(log_breaks, "store_at", lambda uri: Failing(store_at(uri), done=done))
        with pytest.raises(TemporarilyUnavailableError):
            checkpoint_log(now=now)
    assert (folder / key_of(2)).exists() is done
    assert not CheckpointCopy.objects.exists()
    # Nothing new and no minute later: what was signed is copied all the same.
    assert checkpoint_log(now=now) is None
    kept = Checkpoint.objects.get()
    assert (folder / key_of(2)).read_text() == kept.note
    assert CheckpointCopy.objects.get().checkpoint == kept
    grow(1)
    assert checkpoint_log(now=now + EVERY) == 3


def test_where_the_store_cannot_be_asked_nothing_is_signed(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(uri: str) -> Any:
        class Away:
            def keys(self, *_: Any, **__: Any) -> Iterator[str]:
                raise TemporarilyUnavailableError

            get = keys

        return Away()

    grow(1)
    monkeypatch.setattr(log_breaks, "store_at", away)
    with pytest.raises(TemporarilyUnavailableError):
        checkpoint_log(now=now)
    assert newest_checkpoint() is None


def test_AU_7_rewritten_log_is_not_signed(folder: Path, grow: Grow, now: datetime) -> None:
    grow(4)
    checkpoint_log(now=now)
    grow(1)
    with as_table_owner():
        Leaf.objects.filter(leaf_index=2).update(leaf_hash=bytes(32))
        with pytest.raises(ContradictedError):
            checkpoint_log(now=now + EVERY)
    assert Checkpoint.objects.count() == 1


def test_AU_7_a_head_that_is_not_that_of_the_leaves_is_not_signed(
    folder: Path, grow: Grow, now: datetime
) -> None:
    grow(4)
    with as_table_owner():
        Head.objects.update(peaks=bytes(32))
        with pytest.raises(ContradictedError):
            checkpoint_log(now=now)


@pytest.mark.parametrize("forgets", [False, True])
def test_AU_5_a_log_cut_short_meets_its_own_word(
    folder: Path, grow: Grow, now: datetime, forgets: bool
) -> None:
    """Even if the attacker also removed the rows of the checkpoints."""
    grow(3)
    checkpoint_log(now=now)
    kept = Head.objects.get()
    grow(2)
    checkpoint_log(now=now + EVERY)
    with as_table_owner():
        execute("DELETE FROM audit_leaf WHERE leaf_index >= 3")
        Head.objects.update(size=3, link=kept.link, peaks=kept.peaks)
        if forgets:
            execute("DELETE FROM audit_checkpointcopy WHERE checkpoint_id = 5")
            execute("DELETE FROM audit_checkpoint WHERE size = 5")
        grow(1)
        with pytest.raises(ContradictedError):
            checkpoint_log(now=now + 2 * EVERY)


def test_restored_database_that_continued_contradicts_the_stored_copy(
    folder: Path, grow: Grow, now: datetime
) -> None:
    """Two copies of a database that diverged find each other's checkpoints outside."""
    grow(3)
    checkpoint_log(now=now)
    store = store_at(f"file:{folder}")
    store.put_once(key_of(4), b"another story")
    grow(2)
    with pytest.raises(ContradictedError):
        checkpoint_log(now=now + EVERY)
    grow(1)
    with pytest.raises(ContradictedError):
        checkpoint_log(now=now + EVERY)
    assert newest_checkpoint() == Checkpoint.objects.get(size=3)


def test_AU_11_two_logs_in_one_store_end_in_the_first_conflict(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one signs between our read of the store and our copy."""
    grow(2)
    store = store_at(f"file:{folder}")
    real = signer_lookup.audit_signer

    def late(*, now: datetime) -> Any:
        store.put_once(key_of(2), b"another story")
        return real(now=now)

    monkeypatch.setattr(signing, "audit_signer", late)
    with pytest.raises(ImmutableError):
        checkpoint_log(now=now)
    monkeypatch.undo()
    for _ in range(2):
        with pytest.raises(ContradictedError):
            checkpoint_log(now=now + EVERY)


@pytest.mark.parametrize(
    "key",
    [
        "checkpoints/7",
        "checkpoints/0000000000000000000x",
        "breaks/README",
        "breaks/99999999999999.json",
        "endings/README",
        "endings/7.json",
    ],
)
def test_SA_13_what_the_log_does_not_write_is_shown_and_stops_nothing(
    folder: Path, grow: Grow, now: datetime, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One foreign object in the store must not keep the service from answering."""
    grow(1)
    (folder / key).parent.mkdir(parents=True)
    (folder / key).write_bytes(b"")
    assert checkpoint_log(now=now) == 1
    check_history(None)
    check_records(store_at(f"file:{folder}"))
    call_command("verify_audit")
    assert f"The store holds {key}, which the log did not write." in capsys.readouterr().out


def test_a_log_that_was_long_unsigned_is_signed_in_steps(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This bounds the archive's segments, which end at checkpoints, if a log began unsigned."""
    monkeypatch.setattr(signing, "MOST_BETWEEN", 4)
    grow(9)
    assert checkpoint_log(now=now) == 9
    grow(3)
    assert checkpoint_log(now=now + EVERY) == 12
    sizes = [row.size for row in Checkpoint.objects.order_by("size")]
    assert sizes == [4, 8, 9, 12]
    assert [path.name for path in sorted((folder / "checkpoints").iterdir())] == [
        f"{size:020d}" for size in sizes
    ]
    for row in Checkpoint.objects.all():
        opened = open_checkpoint(row.note, log_keys=[verifier()], expected_origin=origin())
        assert (opened.checkpoint.size, opened.checkpoint.root) == (row.size, root_at(row.size))


def test_unsigned_checkpoint_row_is_not_copied_and_ends_no_segment(
    folder: Path, grow: Grow, now: datetime
) -> None:
    """The serving role may insert rows, and what is copied outside stays for years."""
    grow(3)
    forged = f"{origin()}\n3\n{b64_encode(root_at(3))}\n\n— {origin()} {b64_encode(bytes(68))}\n"
    Checkpoint.objects.create(size=3, root=root_at(3), note=forged, at=now)
    store = store_at(f"file:{folder}")
    assert checkpoint_log(now=now) is None
    assert archive_audit(now=now, store=store) is None
    grow(1)
    assert checkpoint_log(now=now + EVERY) == 4
    assert [path.name for path in (folder / "checkpoints").iterdir()] == [f"{4:020d}"]
    assert archive_audit(now=now, store=store) == (0, 4)


def test_checkpoint_signed_concurrently_is_not_a_contradiction(
    folder: Path, grow: Grow, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    grow(2)
    checkpoint_log(now=now)
    older = newest_checkpoint()
    grow(2)
    checkpoint_log(now=now + EVERY)
    grow(1)
    # This process read the newest checkpoint before the other signed.
    monkeypatch.setattr(signing, "newest_checkpoint", lambda: older)
    assert checkpoint_log(now=now + 2 * EVERY) == 5
