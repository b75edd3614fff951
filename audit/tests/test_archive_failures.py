"""Archiving that is cut off, lied to or overtaken leaves one archive, or raises an error."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.archive import segment_writing
from audit.archive.archive_format import ArchiveError, manifest_key
from audit.archive.segment_writing import archive_audit, prove_again
from audit.models import Checkpoint, Segment
from audit.stores import ImmutableError
from audit.stores.folder import FolderStore
from audit.tests.archived import FailingStore, Log, broken_into, signed
from audit.tests.conftest import MakeEvent
from audit.tests.dying import dies_at
from audit.tests.test_archive import manifest_of

pytestmark = pytest.mark.django_db


@pytest.fixture
def log(make_event: MakeEvent, now: datetime, tmp_path: Path, settings: Settings) -> Log:
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    return Log(make_event, now, FolderStore(tmp_path / "archive"), tmp_path / "archive")


PLACES = [
    "archive.after_stage",
    "archive.after_objects",
    "archive.after_proof",
    "archive.after_manifest",
    "archive.after_row",
]


@pytest.mark.parametrize("place", PLACES)
def test_AU_31_archiving_continues_after_a_crash_at_any_point(log: Log, place: str) -> None:
    """The crash is an exception here; tests/faults kills processes.

    The log grows afterwards, so the next run may choose another end.
    """

    log.grown(5)
    with dies_at(place, segment_writing):
        archive_audit(now=log.now, store=log.store)
    assert Segment.objects.exists() == (place == "archive.after_row")
    log.grown(3)
    log.archive()
    assert [(each.first, each.end) for each in Segment.objects.order_by("first")] in (
        [(0, 8)],
        [(0, 5), (5, 8)],
    )
    assert (log.prove().ok, log.prove().tree_size) == (True, 8)
    assert len(list(log.store.keys("segments/"))) == Segment.objects.count()


@pytest.mark.parametrize("done", [False, True], ids=["not done", "done and reported as failed"])
def test_AU_12_AU_31_a_store_that_fails_at_any_call_loses_nothing(log: Log, done: bool) -> None:
    log.grown(300)
    at = 0
    while not Segment.objects.exists():
        at += 1
        store = FailingStore(log.store, at, done=done)
        try:
            archive_audit(now=log.now, store=store)
        except TemporarilyUnavailableError:
            # Nothing counts before the whole segment is proved.
            assert not Segment.objects.exists()
    # Each of its calls failed once, with the objects of all earlier attempts in place.
    assert at > 16 or done
    assert at > 3
    assert log.archive() == []
    assert (log.prove().ok, log.prove().tree_size) == (True, 300)
    assert len(list(log.store.keys("segments/"))) == 1


def test_AU_31_what_is_replaced_while_it_is_written_is_never_noted(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every object in turn is changed between its upload and the proof."""
    log.grown(300)

    def change(name: str) -> None:
        if name == "archive.after_objects":
            path = log.folder / keys[0]
            path.chmod(0o644)
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    with monkeypatch.context() as patch:
        # First run without a record, to learn the keys.
        patch.setattr(segment_writing, "_note", lambda *_: None)
        archive_audit(now=log.now, store=log.store)
    keys = [key for key in log.store.keys() if key != manifest_key(0)]
    assert len(keys) == 7
    while keys:
        (log.folder / manifest_key(0)).unlink(missing_ok=True)
        with broken_into(log.folder / keys[0], None), monkeypatch.context() as patch:
            patch.setattr(segment_writing, "fault_point", change)
            with pytest.raises(ArchiveError, match=keys[0]):
                archive_audit(now=log.now, store=log.store)
            # Afterwards it cannot even be written.
            with pytest.raises(ImmutableError, match=keys[0]):
                archive_audit(now=log.now, store=log.store)
        assert not Segment.objects.exists()
        assert list(log.store.keys("segments/")) == []
        keys.pop(0)
    assert log.archive() == [(0, 300)]


def test_AU_31_a_manifest_whose_objects_are_not_there_is_not_taken_over(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.grown(300)
    with monkeypatch.context() as patch:
        patch.setattr(segment_writing, "_note", lambda *_: None)
        archive_audit(now=log.now, store=log.store)
    for key in list(log.store.keys()):
        if key == manifest_key(0):
            continue
        for data in (None, b"", b"other"):
            with broken_into(log.folder / key, data):
                with pytest.raises(ArchiveError, match=key):
                    archive_audit(now=log.now, store=log.store)
                assert not Segment.objects.exists()
    assert log.archive() == [(0, 300)]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda body: body | {"previous": "0" * 64}, "does not follow"),
        (lambda body: body | {"checkpoint": signed(5, bytes(32))}, "does not know"),
        (lambda body: body | {"checkpoint": "x"}, "does not know"),
        (lambda body: body | {"origin": "another/v1/audit"}, "another log"),
        (lambda body: body | {"end": 4}, "does not know"),
        (lambda body: body | {"first": 1}, "not a segment manifest"),
        (lambda body: body | {"version": 2}, "not a segment manifest"),
        (lambda body: body | {"version": True}, "not a segment manifest"),
        (lambda body: body | {"more": 1}, "not a segment manifest"),
        (
            lambda body: {name: body[name] for name in body if name != "lines"},
            "not a segment manifest",
        ),
        (lambda body: body | {"lines": body["lines"] | {"bytes": 1}}, "not what its manifest says"),
        (
            lambda body: body | {"lines": body["lines"] | {"key": "objects/x.lines.gz"}},
            "not a segment manifest",
        ),
        (lambda body: body | {"lines": body["parquet"]}, "not a segment manifest"),
        (
            lambda body: (
                body | {"lines": body["lines"] | {"sha256": body["lines"]["sha256"].upper()}}
            ),
            "not a segment manifest",
        ),
    ],
)
def test_AU_31_a_manifest_that_is_not_ours_is_refused(
    log: Log, change: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.grown(5)
    with monkeypatch.context() as patch:
        patch.setattr(segment_writing, "_note", lambda *_: None)
        archive_audit(now=log.now, store=log.store)
    path = log.folder / manifest_key(0)
    body = json.loads(path.read_bytes())
    encoded = json.dumps(
        change(body), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    ).encode()
    with broken_into(path, encoded):
        with pytest.raises(ArchiveError, match=said):
            archive_audit(now=log.now, store=log.store)
        assert not Segment.objects.exists()
    # Two texts for one manifest would have two digests.
    with (
        broken_into(path, path.read_bytes() + b"\n"),
        pytest.raises(ArchiveError, match="canonical"),
    ):
        archive_audit(now=log.now, store=log.store)


def test_two_archivers_at_once_make_one_archive(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second sees a newer checkpoint, and ends before the first has written its manifest."""
    log.grown(5)
    inner: list[Any] = []

    def overtake(name: str) -> None:
        if name == "archive.after_proof" and not inner:
            inner.append(None)
            log.grown(3)
            inner[0] = archive_audit(now=log.now, store=log.store)

    monkeypatch.setattr(segment_writing, "fault_point", overtake)
    assert archive_audit(now=log.now, store=log.store) == (0, 8)
    assert inner == [(0, 8)]
    assert [(each.first, each.end) for each in Segment.objects.all()] == [(0, 8)]
    assert log.prove().ok


def test_AU_31_a_manifest_that_the_store_lost_counts_for_nothing(log: Log) -> None:
    class Forgetful(FolderStore):
        def put_once(self, key: str, data: bytes | Path) -> None:
            if key != manifest_key(0):
                super().put_once(key, data)

    log.grown(5)
    with pytest.raises(ArchiveError, match=r"was written to .* but is not there"):
        archive_audit(now=log.now, store=Forgetful(log.folder))
    assert not Segment.objects.exists()
    assert log.archive() == [(0, 5)]


def test_AU_31_another_segment_recorded_meanwhile_is_an_error(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    def overtake(name: str) -> None:
        if name == "archive.after_manifest":
            Segment.objects.create(first=0, end=5, manifest_sha256=bytes(32), at=log.now)

    log.grown(5)
    monkeypatch.setattr(segment_writing, "fault_point", overtake)
    with pytest.raises(ArchiveError, match="records another segment at leaf 0"):
        archive_audit(now=log.now, store=log.store)


def test_AU_31_leaves_without_the_signed_root_are_not_archived(log: Log) -> None:
    """The store is written once, so nothing may be written before the root is compared."""
    log.grow(5)
    Checkpoint.objects.create(size=5, root=bytes(32), note=signed(5, bytes(32)), at=log.now)
    with pytest.raises(ArchiveError, match="do not lead to the root that was signed"):
        archive_audit(now=log.now, store=log.store)
    assert list(log.store.keys()) == []


def test_AU_31_every_segment_of_the_leaves_is_proved_again(log: Log) -> None:
    """As before a month is dropped."""
    for count in (5, 3, 2):
        log.grown(count)
        log.archive()
    prove_again(0, 9, store=log.store)
    path = log.folder / manifest_of(log, 8).lines.key
    with broken_into(path, None):
        prove_again(0, 7, store=log.store)
        with pytest.raises(ArchiveError):
            prove_again(0, 8, store=log.store)
