"""Archiving: segments of the log in a write-once store count only once read back and proved."""

import gzip
import hashlib
import json
import uuid
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.encoding import b64u_decode, parse_timestamp
from agentauth.protocol.log_hashes import CompactTree, canonical_entry_hash, leaf_hash
from audit.archive import segment_writing
from audit.archive.archive_format import ArchiveError, Manifest, manifest_key
from audit.archive.archive_verification import prove_archive
from audit.archive.parquet import ROWS
from audit.archive.segment_writing import EVERY, archive_audit, archive_due
from audit.log.event_encoding import MAX_DATA_BYTES
from audit.models import Checkpoint, Event, Leaf, Segment
from audit.stores.folder import FolderStore
from audit.tests.archived import Log
from audit.tests.conftest import Bucket, MakeEvent
from audit.tests.tampering import as_table_owner, execute

pytestmark = pytest.mark.django_db
# Characters that JSON, line files and terminals get wrong. Names are in UTF-16 order, which differs
# from code point order.
ODD: dict[str, Any] = {
    "\ue000": "beyond the surrogates",
    "\U0001f600": "a pair of them",
    "é": "é",
    "e\u0301": "",
    "line": "a\nb\r\nc\u2028d\u2029e\x85f",
    "quoted": '"\\/\b\f\t\x01\x7f',
    "ltr": "\u202eabc\u202c",
    "bom": "\ufeff",
    "last": "\U0010ffff\uffff",
    "nested": [{"ß": [None, True, -(2**53) + 1]}],
}


@pytest.fixture
def log(make_event: MakeEvent, now: datetime, tmp_path: Path, settings: Settings) -> Log:
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    return Log(make_event, now, FolderStore(tmp_path / "archive"), tmp_path / "archive")


def manifest_of(log: Log, first: int) -> Manifest:
    return Manifest.parse(log.store.get(manifest_key(first)) or b"", expected_first=first)


def lines_of(log: Log, first: int) -> list[bytes]:
    return gzip.decompress(
        (log.folder / manifest_of(log, first).lines.key).read_bytes()
    ).splitlines(keepends=True)


def test_the_longest_event_that_is_recorded_is_read_back_from_the_archive(log: Log) -> None:
    # Columns of full length, in characters that JSON writes with six bytes.
    long = dict.fromkeys(("token_jti", "reason"), "\x01" * 64)
    text = "x" * (MAX_DATA_BYTES - len('{"text":""}'))
    log.grow(1, data={"text": text}, personal={}, **long)
    log.sign()
    assert log.archive() == [(0, 1)]
    assert prove_archive(store=log.store, now=log.now).ok


def test_AU_31_a_segment_holds_its_events_as_a_verifier_needs_them(log: Log) -> None:
    log.grow(299)
    log.grow(1, data=ODD)
    log.sign()
    assert log.archive() == [(0, 300)]
    # Lines: splitting and hashing is all that a verifier needs.
    tree = CompactTree()
    for index, line in enumerate(lines_of(log, 0)):
        number, salt, body = line.removesuffix(b"\n").split(b" ", 2)
        assert int(number) == index
        tree.append(leaf_hash(canonical_entry_hash(body, b64u_decode(salt.decode()))))
    row = Checkpoint.objects.get()
    assert (tree.size, tree.root()) == (300, bytes(row.root))
    # The manifest names exactly the objects that are there.
    manifest = manifest_of(log, 0)
    assert (manifest.first, manifest.end, manifest.previous, manifest.checkpoint) == (
        0,
        300,
        None,
        row.note,
    )
    for named in (manifest.lines, manifest.parquet):
        data = (log.folder / named.key).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (named.sha256, named.bytes)
        assert named.sha256 in named.key
    assert set(log.store.keys()) == {
        manifest_key(0),
        manifest.lines.key,
        manifest.parquet.key,
        "tile/0/000",
        "tile/0/001.p/44",
        "tile/1/000.p/1",
        "tile/entries/000",
        "tile/entries/001.p/44",
    }
    # Tiles and bundles as tlog-tiles defines them.
    leaves = list(Leaf.objects.order_by("leaf_index"))
    hashes, entries = (
        b"".join(bytes(getattr(leaf, name)) for leaf in leaves[:256])
        for name in ("leaf_hash", "entry")
    )
    assert log.store.get("tile/0/000") == hashes
    bundle = log.store.get("tile/entries/000") or b""
    assert [bundle[at : at + 2] for at in range(0, 8704, 34)] == [b"\0\x20"] * 256
    assert b"".join(bundle[at + 2 : at + 34] for at in range(0, 8704, 34)) == entries
    # Rows for analysts.
    rows = pq.read_table(log.folder / manifest.parquet.key).to_pylist()
    stored = [leaf.event for leaf in Leaf.objects.select_related("event").order_by("leaf_index")]
    assert [(row["leaf_index"], row["id"], row["at"], json.loads(row["data"])) for row in rows] == [
        (index, str(event.id), event.at, event.data) for index, event in enumerate(stored)
    ]
    assert len(rows) == Event.objects.count() == 300
    # The row that records the segment.
    segment = Segment.objects.get()
    assert (
        bytes(segment.manifest_sha256)
        == hashlib.sha256(log.store.get(manifest_key(0)) or b"").digest()
    )
    assert (segment.first, segment.end, segment.at) == (0, 300, log.now)


def test_AU_31_every_column_and_every_character_comes_through(log: Log) -> None:
    ids = {
        name: uuid.uuid4() for name in ("agent_id", "human_id", "service_provider_id", "grant_id")
    }
    log.grow(1, **ids, token_jti="jti", reason="expired", data=ODD, personal={})
    log.sign()
    log.archive()
    event = Event.objects.get()
    [row] = pq.read_table(log.folder / manifest_of(log, 0).parquet.key).to_pylist()
    for name in ids:
        assert row[name] == str(getattr(event, name))
    assert (row["token_jti"], row["reason"], row["outcome"]) == ("jti", "expired", event.outcome)
    assert (row["kind"], row["actor_kind"], row["actor_id"]) == (
        event.kind,
        event.actor_kind,
        event.actor_id,
    )
    assert json.loads(row["data"]) == ODD
    [line] = lines_of(log, 0)
    body = json.loads(line.split(b" ", 2)[2])
    assert (body["data"], parse_timestamp(body["at"])) == (ODD, event.at)
    assert log.prove().ok


def test_AU_31_no_personal_value_goes_there(log: Log) -> None:
    log.grown(3)
    log.archive()
    for key in log.store.keys():
        data = (log.folder / key).read_bytes()
        assert b"Alice" not in (gzip.decompress(data) if key.endswith(".gz") else data)
    assert (
        "commitment"
        in pq.read_table(log.folder / manifest_of(log, 0).parquet.key).column("data")[0].as_py()
    )


def test_segments_follow_each_other_and_end_at_checkpoints(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_writing, "SEGMENT_LEAVES", 10)
    log.grown(3, 5, 4, 28)
    log.grow(2)
    # Each ends at the last checkpoint within ten leaves, or at the first one after them.
    assert log.archive() == [(0, 8), (8, 12), (12, 40)]
    assert log.archive() == []
    log.sign()
    assert log.archive() == [(40, 42)]
    manifests = [log.store.get(manifest_key(first)) or b"" for first in (0, 8, 12, 40)]
    named = [manifest_of(log, first).previous for first in (0, 8, 12, 40)]
    assert named == [None, *(hashlib.sha256(data).hexdigest() for data in manifests[:-1])]
    assert (log.prove().ok, log.prove().tree_size) == (True, 42)


def test_segments_cut_through_tiles(log: Log) -> None:
    log.grown(200, 200, 400)
    ranges = [archive_audit(now=log.now, store=log.store) for _ in range(2)]
    # All three fit into one segment.
    assert ranges == [(0, 800), None]
    log.grown(200, 30)
    assert log.archive() == [(800, 1030)]
    assert log.store.get("tile/0/003") == b"".join(
        bytes(each)
        for each in Leaf.objects.filter(leaf_index__gte=768, leaf_index__lt=1024)
        .order_by("leaf_index")
        .values_list("leaf_hash", flat=True)
    )
    assert {
        "tile/0/003",
        "tile/0/003.p/32",
        "tile/0/004.p/6",
        "tile/1/000.p/3",
        "tile/1/000.p/4",
    } <= set(log.store.keys("tile/"))
    assert log.prove().ok


def test_the_same_segment_is_the_same_bytes(log: Log, tmp_path: Path) -> None:
    log.grown(20)
    log.archive()
    again = FolderStore(tmp_path / "again")
    with as_table_owner():
        execute("DELETE FROM audit_segment")
        archive_audit(now=log.now, store=again)
    assert {key: log.store.get(key) for key in log.store.keys()} == {
        key: again.get(key) for key in again.keys()
    }


def test_more_rows_than_a_row_group_are_written_group_by_group(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("audit.archive.parquet.ROWS", "audit.archive.segment_reading.ROWS"):
        monkeypatch.setattr(module, 8)
    assert ROWS == 8_192
    for count in (16, 7):
        log.grown(count)
        log.archive()
    files = [pq.ParquetFile(log.folder / manifest_of(log, first).parquet.key) for first in (0, 16)]
    assert [file.num_row_groups for file in files] == [2, 1]
    assert {file.metadata.row_group(0).column(0).compression for file in files} == {"ZSTD"}
    assert log.prove().ok


# What the database holds


def _change_event(log: Log) -> None:
    Event.objects.filter(pk=Leaf.objects.get(leaf_index=3).event_id).update(
        kind="audit.request.forgiven"
    )


def _delete_event(log: Log) -> None:
    execute(
        "DELETE FROM audit_event WHERE id = (SELECT event_id FROM audit_leaf WHERE leaf_index = 3)"
    )


def _delete_leaf(log: Log) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index = 3")


def _delete_last_leaf(log: Log) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index = 4")


def _change_entry(log: Log) -> None:
    Leaf.objects.filter(leaf_index=3).update(entry=bytes(32))


def _change_hash(log: Log) -> None:
    Leaf.objects.filter(leaf_index=3).update(leaf_hash=bytes(32))


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (_change_event, 3),
        (_delete_event, 3),
        (_delete_leaf, 3),
        (_delete_last_leaf, 4),
        (_change_entry, 3),
        (_change_hash, 3),
    ],
)
def test_what_was_tampered_with_is_not_archived(log: Log, change: Any, place: int) -> None:
    log.grown(5)
    with as_table_owner():
        change(log)
        with pytest.raises(ArchiveError) as found:
            archive_audit(now=log.now, store=log.store)
        assert found.value.place == place
        assert list(log.store.keys()) == []


def test_a_checkpoint_that_is_not_what_its_note_says_ends_no_segment(log: Log) -> None:
    log.grown(5)
    with as_table_owner():
        Checkpoint.objects.update(root=bytes(32))
        assert archive_audit(now=log.now, store=log.store) is None
        assert list(log.store.keys()) == []


# When segments are archived


def test_the_jobs_archive_hourly_and_a_full_segment_at_once(
    log: Log, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segment_writing, "SEGMENT_LEAVES", 10)
    settings.AUDIT_STORE = f"file:{log.folder}"
    now = log.now
    assert archive_due(now=now) is None
    log.grow(3)
    # Events beyond the last checkpoint are not archived.
    assert archive_due(now=now) is None
    log.sign()
    settings.AUDIT_STORE = ""
    assert archive_due(now=now) is None
    settings.AUDIT_STORE = f"file:{log.folder}"
    assert archive_due(now=now) == (0, 3)
    log.grown(2)
    assert archive_due(now=now + EVERY - timedelta(seconds=1)) is None
    assert archive_due(now=now + EVERY) == (3, 5)
    assert archive_due(now=now + 2 * EVERY) is None
    log.grown(9)
    assert archive_due(now=now + EVERY) is None
    log.grown(1)
    assert archive_due(now=now + EVERY) == (5, 15)
    # A clock that was set back does not delay it.
    log.grown(1)
    assert archive_due(now=now) == (15, 16)
    assert log.prove().ok


def test_AU_31_the_same_in_a_bucket_with_object_lock(
    log: Log, bucket: Bucket, settings: Settings
) -> None:
    settings.AUDIT_STORE = bucket.uri
    log.grown(300)
    assert archive_due(now=log.now) == (0, 300)
    log.store = bucket.store  # type: ignore[assignment]
    assert log.prove().ok
    for key in bucket.store.keys():
        held = bucket.client.get_object_retention(Bucket=bucket.name, Key=f"log/{key}")["Retention"]
        assert held["Mode"] == "COMPLIANCE"
        # Add a version, as anyone with the credentials can: it changes nothing.
        bucket.client.put_object(Bucket=bucket.name, Key=f"log/{key}", Body=b"other")
    assert log.prove().ok
    log.grown(5)
    assert archive_due(now=log.now + EVERY) == (300, 305)
    assert (log.prove().ok, log.prove().tree_size) == (True, 305)
