"""Archiving: write the next segment of the log to the store, read it back, prove it, record it.

This relies on three facts: the store writes a key once and accepts the same put again; leaves and
checkpoints never change; segment rows are only inserted. So after a crash the next run finds the
objects in place, or a manifest that it reads back and takes over. No separate recovery is needed.
Nothing is deleted from the database here.
"""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from django.db import IntegrityError, transaction

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.signed_notes import parse_note
from audit.archive.archive_format import ArchiveError, Manifest, manifest_key
from audit.archive.parallel_calls import ParallelCalls
from audit.archive.parquet import package_error
from audit.archive.scratch import scratch
from audit.archive.segment_building import leaves, prove, stage, tiles_at
from audit.archive.segment_reading import noted_manifest, prove_segment, read_manifest
from audit.checkpoints.checkpoint_copies import ContradictedError, check_store_unchanged
from audit.checkpoints.log_breaks import log_store
from audit.checkpoints.signed_checkpoint_reading import anchor_of
from audit.checkpoints.signing import MOST_BETWEEN
from audit.fault_injection import fault_point
from audit.models import Checkpoint, Segment
from audit.stores import ImmutableError, Store

logger = logging.getLogger(__name__)

# The most leaves in a segment if a checkpoint lies within them; this many waiting are archived at
# once.
SEGMENT_LEAVES: Final = MOST_BETWEEN
# How often to archive while the log grows.
EVERY: Final = timedelta(hours=1)


class Range(NamedTuple):
    """Leaves `first` ≤ index < `end`."""

    first: int
    end: int


def archive_due(*, now: datetime) -> Range | None:
    """Archive one segment if a full one waits, or if leaves wait and the last one is EVERY old.

    Called by the jobs. Archives nothing while pyarrow is missing: the leaves wait until it is
    installed. Raises as `archive_audit`.
    """
    newest, store = Checkpoint.objects.order_by("-size").first(), log_store()
    if store is None or newest is None:
        return None
    last = Segment.objects.order_by("-first").first()
    waiting = newest.size - (last.end if last else 0)
    # If the clock was set back, `last.at` is in the future: do not wait for that time to return.
    rests = last is not None and timedelta(0) <= now - last.at < EVERY
    if waiting <= 0 or (rests and waiting < SEGMENT_LEAVES):
        return None
    # Only in development: production does not start without the package (agentauth.E027).
    if package_error():
        return None
    # A segment in another store than those before it would belong to no archive.
    check_store_unchanged()
    return archive_audit(now=now, store=store)


def archive_audit(*, now: datetime, store: Store) -> Range | None:
    """Write the next segment to the store, prove it there, and record it.

    Returns None if no checkpoint covers more than the archive. Raises TemporarilyUnavailableError
    if the store does not answer (nothing is lost; the next call continues); ArchiveError if an
    event does not match its leaf, or the store's content is not this log's; ImmutableError if a key
    already holds another object; InvalidStateError if pyarrow is missing.
    """
    last = Segment.objects.order_by("-first").first()
    first = last.end if last else 0
    previous = bytes(last.manifest_sha256).hex() if last else None
    proved = None
    # 1. An earlier run may have written the manifest and crashed before the row.
    found = read_manifest(store, first)
    if found is None:
        checkpoint = _next(first, now)
        if checkpoint is None:
            return None
        # 2. Write the objects, read them back and prove them before the manifest: it is write-once.
        proved = _put_objects(store, first, previous, checkpoint)
        _prove(store, proved, previous)
        fault_point("archive.after_proof")
        with suppress(ImmutableError):
            store.put_once(manifest_key(first), proved.encode())
        fault_point("archive.after_manifest")
        # 3. Use the manifest that is stored now; another process may have written it first.
        found = read_manifest(store, first)
        if found is None:
            raise ArchiveError(
                first, f"{manifest_key(first)} was written to {store!r} but is not there."
            )
    manifest, sha256 = found
    if manifest != proved:
        _prove(store, manifest, previous)
    # 4. Insert the row last: it makes the range count as archived.
    _note(manifest, sha256, now)
    fault_point("archive.after_row")
    return Range(manifest.first, manifest.end)


def prove_again(first: int, last: int, *, store: Store) -> None:
    """Read back the segments that hold leaves `first` to `last` and prove them; changes nothing.

    Raises as `archive_audit`.
    """
    for segment in Segment.objects.filter(first__lte=last, end__gt=first).order_by("first"):
        manifest = noted_manifest(store, segment)
        _prove(store, manifest, manifest.previous)


def _next(first: int, now: datetime) -> Checkpoint | None:
    """The checkpoint the next segment ends at: the last within SEGMENT_LEAVES, else the next one.

    Rows that no valid key of the log signed are skipped, since an archived segment cannot be
    removed.
    """
    later = Checkpoint.objects.filter(size__gt=first).order_by("size")
    near = later.filter(size__lte=first + SEGMENT_LEAVES).reverse()
    for row in chain(near.iterator(), later.iterator()):
        try:
            anchor_of(row, now=now)
        except ContradictedError:
            logger.exception("a segment must end with a checkpoint that a key of the log signed")
        else:
            return row
    return None


def _put_objects(
    store: Store, first: int, previous: str | None, checkpoint: Checkpoint
) -> Manifest:
    with scratch() as folder:
        staged = stage(first, checkpoint.size, folder)
        # Before anything is stored: the store is written once, so a bad object could not be
        # replaced.
        if staged.root != bytes(checkpoint.root):
            raise ArchiveError(
                first,
                f"Leaves {first} to {checkpoint.size - 1} do not lead to the root that was "
                "signed for them.",
            )
        fault_point("archive.after_stage")
        with ParallelCalls() as calls:
            for key, path in staged.files.items():
                calls.start(_put, store, key, path)
        fault_point("archive.after_objects")
    return Manifest(
        origin=parse_checkpoint(parse_note(checkpoint.note).text).origin,
        first=first,
        end=checkpoint.size,
        previous=previous,
        checkpoint=checkpoint.note,
        lines=staged.lines,
        parquet=staged.parquet,
    )


def _put(store: Store, key: str, path: Path) -> None:
    store.put_once(key, path)
    fault_point("archive.after_object")


def _prove(store: Store, manifest: Manifest, previous: str | None) -> None:
    """Check that the store holds this segment of this log. Raises ArchiveError."""
    first, key = manifest.first, manifest_key(manifest.first)
    if manifest.previous != previous:
        raise ArchiveError(first, f"{key} in {store!r} does not follow the segment before it.")
    signed = Checkpoint.objects.filter(size=manifest.end).first()
    if signed is None or signed.note != manifest.checkpoint:
        raise ArchiveError(
            first,
            f"{key} in {store!r} holds a checkpoint that the database does not know: the database "
            "was set back, or the store belongs to another log.",
        )
    stored = leaves(first, manifest.end)
    prove_segment(
        store, manifest, tree=tiles_at(first), visit=lambda line: prove(line, next(stored))
    )


def _note(manifest: Manifest, sha256: bytes, now: datetime) -> None:
    try:
        with transaction.atomic():
            Segment.objects.create(
                first=manifest.first, end=manifest.end, manifest_sha256=sha256, at=now
            )
    except IntegrityError:
        # A process that ran at the same time must have inserted the same row.
        there = Segment.objects.filter(first=manifest.first, end=manifest.end).first()
        if there is None or bytes(there.manifest_sha256) != sha256:
            raise ArchiveError(
                manifest.first, f"The database records another segment at leaf {manifest.first}."
            ) from None
