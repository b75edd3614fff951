"""An archive proved without the database, and events restored from it."""

import base64
import gzip
import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import asdict
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey
from audit.archive import segment_writing
from audit.archive.archive_format import ArchiveError, manifest_key
from audit.archive.archive_verification import prove_archive
from audit.archive.restoring import Restored, restore_audit
from audit.checkpoints.signed_checkpoint_reading import Anchor
from audit.models import Checkpoint, Event, Leaf, QueueEntry, Segment
from audit.stores.folder import FolderStore
from audit.tests.archived import Log, broken_into, signed
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import as_table_owner, execute
from audit.tests.test_archive import ODD
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db


@pytest.fixture
def log(
    make_event: MakeEvent,
    now: datetime,
    tmp_path: Path,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> Log:
    """Two segments, and a checkpoint beyond them."""
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    monkeypatch.setattr(segment_writing, "SEGMENT_LEAVES", 260)
    log = Log(make_event, now, FolderStore(tmp_path / "archive"), tmp_path / "archive")
    log.grown(4, 254, 7, 3)
    # The checkpoints at 4 and 258 are within the first segment.
    assert log.archive() == [(0, 258), (258, 268)]
    for row in Checkpoint.objects.all():
        log.store.put_once(f"checkpoints/{row.size:020d}", row.note.encode())
    log.grow(2)
    row = log.sign()
    log.store.put_once(f"checkpoints/{row.size:020d}", row.note.encode())
    return log


def old(size: int) -> Anchor:
    return Anchor(size, bytes(Checkpoint.objects.get(size=size).root), "an old checkpoint")


def test_AU_31_a_whole_archive_passes_with_no_database(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Checkpoint.objects.get(size=268).root
    anchors = [old(size) for size in (4, 258, 265, 268)]
    monkeypatch.setattr("django.db.connection.cursor", None)
    verdict = log.prove(anchors=anchors)
    assert (verdict.ok, verdict.tree_size, verdict.first_bad, verdict.problem) == (
        True,
        268,
        None,
        "",
    )
    monkeypatch.undo()
    assert base64.b64decode(verdict.root_hash) == bytes(root)


def test_AU_31_each_object_that_is_replaced_or_gone_is_named(log: Log) -> None:
    keys = list(log.store.keys())
    assert len(keys) == 2 * 3 + 5 + 7
    for key in keys:
        for data in (
            None,
            b"",
            (log.folder / key).read_bytes()[:-1],
            (log.folder / key).read_bytes() + b"\n",
        ):
            if data is None and (key.startswith("checkpoints/") or key == manifest_key(258)):
                # Without knowledge from outside the store, its absence cannot be noticed.
                continue
            with broken_into(log.folder / key, data):
                verdict = log.prove()
            assert not verdict.ok, key
            assert key in verdict.problem or (data is None and key in str(manifest_key(0))), (
                key,
                verdict.problem,
            )
            assert verdict.first_bad is not None
            assert verdict.tree_size in {0, 258, 268}
    assert log.prove().ok


def test_AU_31_a_cut_end_shows_against_an_older_checkpoint(log: Log) -> None:
    (log.folder / manifest_key(258)).unlink()
    assert (log.prove().ok, log.prove().tree_size) == (True, 258)
    verdict = log.prove(anchors=[old(268)])
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, 258, 258)
    assert "covers 268 events" in verdict.problem


def test_AU_9_another_story_of_the_same_size_is_refused(log: Log) -> None:
    verdict = log.prove(anchors=[Anchor(265, bytes(32), "another")])
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, 258, 258)
    for size in (4, 258, 265, 268):
        path = log.folder / f"checkpoints/{size:020d}"
        with broken_into(path, signed(size, bytes(32)).encode()):
            assert f"checkpoints/{size:020d}" in log.prove().problem
    # Signed, but for another size than its name says.
    with broken_into(
        log.folder / "checkpoints/00000000000000000270", signed(271, bytes(32)).encode()
    ):
        assert "a checkpoint of 271 events" in log.prove().problem


def test_a_missing_segment_in_the_middle_is_named(log: Log) -> None:
    (log.folder / manifest_key(0)).unlink()
    verdict = log.prove()
    assert (verdict.ok, verdict.first_bad) == (False, 0)
    assert manifest_key(258) in verdict.problem


def test_an_empty_archive_proves_nothing(tmp_path: Path, now: datetime) -> None:
    verdict = prove_archive(store=FolderStore(tmp_path / "absent"), now=now)
    assert (verdict.ok, verdict.tree_size) == (False, 0)
    assert "no segment" in verdict.problem


OTHER = LocalSigner(PrivateKey.generate())


def other_keys(*, purpose: str, now: datetime) -> dict[str, PublicKey]:
    return {"kid": OTHER.public}


def test_the_key_decides_whose_log_it_is(log: Log, settings: Settings) -> None:
    # A log that once had another name is still ours.
    settings.PUBLIC_URL = "https://another.example"
    assert log.prove().ok
    settings.AUDIT_KEYS = f"{__name__}.other_keys"
    verdict = log.prove()
    assert (verdict.ok, verdict.tree_size, verdict.first_bad) == (False, 0, 0)
    assert "is refused" in verdict.problem


def test_segment_signed_by_another_key_is_refused(log: Log) -> None:
    path = log.folder / manifest_key(258)
    body = json.loads(path.read_bytes())
    root = bytes(Checkpoint.objects.get(size=268).root)
    body["checkpoint"] = signed(268, root, signer=OTHER)
    with broken_into(
        path, json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ):
        verdict = log.prove()
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, 258, 258)
    assert f"{manifest_key(258)} is refused" in verdict.problem


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda _log, _body: {"previous": "0" * 64}, "does not name the segment before it"),
        (lambda _log, _body: {"previous": None}, "does not name the segment before it"),
        (lambda _log, _body: {"checkpoint": signed(268, bytes(32))}, "do not lead to the root"),
        (
            lambda log, body: {"parquet": other_parquet(log, body)},
            "does not contain the same events",
        ),
    ],
)
def test_AU_31_a_manifest_with_one_member_of_another_story_is_refused(
    log: Log, change: Any, said: str
) -> None:
    """All digests match, and the log's own key signed."""
    path = log.folder / manifest_key(258)
    body = json.loads(path.read_bytes())
    body |= change(log, body)
    with broken_into(
        path, json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ):
        verdict = log.prove()
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, 258, 258)
    assert said in verdict.problem


def other_parquet(log: Log, body: dict[str, Any]) -> dict[str, Any]:
    """The same rows except for one word."""
    table = pq.read_table(log.folder / body["parquet"]["key"])
    rows = table.to_pylist()
    rows[3]["outcome"] = "failed"
    path = log.folder / "made"
    pq.write_table(table.from_pylist(rows, schema=table.schema), path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    made = path.rename(log.folder / f"objects/{sha256}.parquet")
    return {"key": f"objects/{sha256}.parquet", "sha256": sha256, "bytes": made.stat().st_size}


def rewritten(log: Log, change: Callable[[list[bytes]], list[bytes]]) -> dict[str, bytes]:
    """The second segment rewritten, digests too, by the folder's owner without the log's key."""
    path = log.folder / manifest_key(258)
    body = json.loads(path.read_bytes())
    lines = gzip.decompress((log.folder / body["lines"]["key"]).read_bytes()).splitlines(
        keepends=True
    )
    data = gzip.compress(b"".join(change(lines)), mtime=0)
    sha256 = hashlib.sha256(data).hexdigest()
    body["lines"] = {"key": f"objects/{sha256}.lines.gz", "sha256": sha256, "bytes": len(data)}
    (log.folder / body["lines"]["key"]).write_bytes(data)
    return {
        "manifest": json.dumps(
            body, sort_keys=True, separators=(",", ":"), ensure_ascii=False
        ).encode()
    }


def _swap(lines: list[bytes]) -> list[bytes]:
    numbers, rest = zip(*(line.split(b" ", 1) for line in lines), strict=True)
    return [b" ".join(pair) for pair in zip(numbers, (rest[1], rest[0], *rest[2:]), strict=True)]


def _deny_one(lines: list[bytes]) -> list[bytes]:
    denied = lines[5].replace(b'"outcome":"success"', b'"outcome":"denied"')
    return [*lines[:5], denied, *lines[6:]]


@pytest.mark.parametrize(
    ("change", "first_bad"),
    [
        (lambda lines: lines[:-1], 267),
        (lambda lines: lines[1:], 258),
        (lambda lines: [*lines[:3], *lines[4:]], 261),
        (lambda lines: [*lines, lines[-1]], 267),
        (lambda lines: [*lines[:-1], lines[-1][:-1]], 267),
        (lambda lines: [lines[0].replace(b"258 ", b"0258 "), *lines[1:]], 258),
        (lambda lines: [lines[0].replace(b" ", b"  ", 1), *lines[1:]], 258),
        (lambda lines: [b"258 " + b"_" * 43 + b" {}\n", *lines[1:]], 258),
        (lambda lines: [b"258 " + b"A" * 43 + b" {}\n", *lines[1:]], 258),
        (lambda lines: [b"258 " + b"A" * 43 + b" {" + b"x" * 1_100_000 + b"}\n", *lines[1:]], 258),
        # These are found only by the Parquet file or the root.
        (_swap, 258),
        (_deny_one, 258),
    ],
)
def test_AU_31_rewritten_lines_with_new_digests_do_not_pass(
    log: Log, change: Any, first_bad: int
) -> None:
    made = rewritten(log, change)
    with broken_into(log.folder / manifest_key(258), made["manifest"]):
        verdict = log.prove()
        assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, first_bad, 258)
        # None of it is restored either.
        with pytest.raises(ArchiveError, match="differs from the recorded one"):
            restore_audit(store=log.store)


# Restoring events


def gone(log: Log, *indexes: int) -> dict[Any, Any]:
    """Delete these events; returns their rows."""
    ids = list(Leaf.objects.filter(leaf_index__in=indexes).values_list("event_id", flat=True))
    rows = {row["id"]: row for row in Event.objects.filter(id__in=ids).values()}
    for each in ids:
        execute(
            "DELETE FROM audit_event WHERE id = %s",
            each.hex if connection.vendor == "sqlite" else each,
        )
    return rows


def test_events_that_are_missing_come_back_as_they_were(log: Log) -> None:
    assert restore_audit(store=log.store) == Restored(segments=2, events=268, restored=0)
    waiting = QueueEntry.objects.count()
    with as_table_owner():
        rows = gone(log, 0, 5, 257, 258, 267)
        assert len(rows) == 5
        assert not verify_log().ok
        assert restore_audit(store=log.store, first=258) == Restored(
            segments=1, events=10, restored=2
        )
        assert restore_audit(store=log.store, end=258) == Restored(
            segments=1, events=258, restored=3
        )
        assert restore_audit(store=log.store) == Restored(segments=2, events=268, restored=0)
        assert {row["id"]: row for row in Event.objects.filter(id__in=rows).values()} == rows
        assert verify_log().ok
        assert QueueEntry.objects.count() == waiting


def test_odd_characters_come_back_as_they_were(log: Log) -> None:
    log.grow(1, data=ODD)
    size = log.sign().size
    log.archive()
    with as_table_owner():
        rows = gone(log, size - 1)
        assert restore_audit(store=log.store).restored == 1
        assert {row["id"]: row for row in Event.objects.filter(id__in=rows).values()} == rows


def test_what_is_there_is_never_overwritten(log: Log) -> None:
    with as_table_owner():
        changed = Leaf.objects.get(leaf_index=2).event_id
        Event.objects.filter(id=changed).update(kind="audit.request.forgiven")
        gone(log, 3)
        assert restore_audit(store=log.store).restored == 1
        assert Event.objects.get(id=changed).kind == "audit.request.forgiven"
        assert verify_log().first_bad == str(changed)


def test_nothing_comes_home_that_the_leaves_do_not_know(log: Log) -> None:
    with as_table_owner():
        gone(log, 3)
        for change in ({"entry": bytes(32)}, {"leaf_hash": bytes(32)}, {"event_id": uuid.uuid4()}):
            before = Leaf.objects.filter(leaf_index=3).values(*change).get()
            Leaf.objects.filter(leaf_index=3).update(**change)
            with pytest.raises(ArchiveError):
                restore_audit(store=log.store)
            Leaf.objects.filter(leaf_index=3).update(**before)
        Segment.objects.filter(first=0).update(manifest_sha256=bytes(32))
        with pytest.raises(ArchiveError, match="differs from the recorded one"):
            restore_audit(store=log.store)


def test_a_tampered_object_is_named_before_anything_comes_home(log: Log) -> None:
    key = json.loads((log.folder / manifest_key(0)).read_bytes())["lines"]["key"]
    with as_table_owner():
        gone(log, 3)
        for data in (None, b"other"):
            with broken_into(log.folder / key, data), pytest.raises(ArchiveError, match=key):
                restore_audit(store=log.store)
        assert restore_audit(store=log.store).restored == 1


def test_the_commands_say_what_they_did(log: Log, settings: Settings) -> None:
    settings.AUDIT_STORE = f"file:{log.folder}"

    assert json_of("archive_audit") == {
        "archived_from": 268,
        "archived_to": 270,
        "segments": 1,
    }
    assert json_of("archive_audit") == {
        "archived_from": None,
        "archived_to": None,
        "segments": 0,
    }
    assert "nothing to archive" in output_of("archive_audit")
    log.grown(1)
    assert "Archived leaves 270 to 270 in 1 segments" in output_of("archive_audit")
    assert json_of("restore_audit", "--first", "270") == {
        "segments": 1,
        "events": 1,
        "restored": 0,
    }
    assert output_of("restore_audit").startswith("Read 271 events in 4 segments; 0 were missing")
    settings.AUDIT_STORE = ""
    for command in ("archive_audit", "restore_audit"):
        with pytest.raises(CommandError, match="AUDIT_STORE is not set"):
            output_of(command)


def test_AU_31_the_archive_is_proved_by_a_command(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"file:{log.folder}"

    def said(*arguments: str) -> tuple[bool, str]:
        out, codes = StringIO(), list[int]()
        with monkeypatch.context() as patch:
            patch.setattr("sys.exit", codes.append)
            call_command("verify_audit", "--archive", uri, *arguments, stdout=out)
        assert codes in ([], [1])
        return not codes, out.getvalue()

    passed, line = said("--json")
    assert passed
    plain = {
        "breaks": [],
        "state_kept": False,
        "other_stores": [],
        "strange": [],
        "contradicted_grants": {},
        "contradicted_rows": {},
        "contradictions": [],
        "grants_of_disabled_keys": {},
    }
    assert json.loads(line) == asdict(log.prove()) | plain
    assert said()[1].startswith("The archive is whole: 268 events, root ")
    note = tmp_path / "note"
    note.write_text(Checkpoint.objects.get(size=265).note)
    assert said("--from", str(note))[0]
    # Signed, but of another history.
    note.write_text(signed(265, bytes(32)))
    passed, line = said("--from", str(note), "--json")
    assert (passed, json.loads(line)["first_bad"]) == (False, 258)
    with broken_into(log.folder / "tile/0/000", b""):
        passed, line = said()
    assert not passed
    assert line.startswith("THE ARCHIVE IS NOT WHOLE from leaf 255 on. tile/0/000 in file:")
    with pytest.raises(CommandError, match="A store of the log must be"):
        output_of("verify_audit", "--archive", "nonsense")
