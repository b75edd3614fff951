"""Archiving: the next segment of the log goes into the store, is read back there and proved, and only then counts as archived.

What this relies on: the store writes once and repeats a put without harm; leaves and checkpoints never change; a segment
is a row that is only inserted. So a crash anywhere leaves objects that the next run finds in place, or a manifest that it
reads back and takes over: there is no recovery of its own. Nothing is taken from the database here.
"""

import logging
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import Final, NamedTuple

from django.db import IntegrityError, transaction

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.notes import parse_note
from audit.anchors import anchor_of
from audit.archive.hands import Hands
from audit.archive.layout import ArchiveError, Manifest, manifest_key
from audit.archive.reading import noted_manifest, prove_segment, read_manifest
from audit.archive.scratch import scratch
from audit.archive.staging import leaves, prove, stage, tiles_at
from audit.breaks import log_store
from audit.checkpoints import MOST_BETWEEN
from audit.copies import ContradictedError, check_place
from audit.faults import fault_point
from audit.models import Checkpoint, Segment
from audit.stores import ImmutableError, Store

logger = logging.getLogger(__name__)

# A segment has so many leaves at most where there is a checkpoint within them, and is made at once when they wait.
SEGMENT_LEAVES: Final = MOST_BETWEEN
# While there is news, as often as this.
EVERY: Final = timedelta(hours=1)


class Range(NamedTuple):
    """Leaves `first` ≤ index < `end`."""

    first: int
    end: int


def archive_due(*, now: datetime) -> Range | None:
    """What the jobs ask: one segment, if a full one waits, or some news has for EVERY. Raises as `archive_audit`."""
    newest, store = Checkpoint.objects.order_by("-size").first(), log_store()
    if store is None or newest is None:
        return None
    last = Segment.objects.order_by("-first").first()
    waiting = newest.size - (last.end if last else 0)
    # A clock that was set back must not put the archive off until it is as late again.
    rests = last is not None and timedelta(0) <= now - last.at < EVERY
    if waiting <= 0 or (rests and waiting < SEGMENT_LEAVES):
        return None
    # A segment in another place than those before it would be part of no archive.
    check_place()
    return archive_audit(now=now, store=store)


def archive_audit(*, now: datetime, store: Store) -> Range | None:
    """Put the next segment into the store, prove it there, and note it; None where no checkpoint is beyond the last one.

    Raises TemporarilyUnavailableError where the store does not answer: nothing is lost, and the next call goes on.
    ArchiveError where an event is not what its leaf says, or what stands in the store is not this log's; ImmutableError
    where something else stands in the place of an object.
    """
    last = Segment.objects.order_by("-first").first()
    first = last.end if last else 0
    previous = bytes(last.manifest_sha256).hex() if last else None
    proved = None
    # 1. Somebody may have come as far as the manifest and died.
    found = read_manifest(store, first)
    if found is None:
        checkpoint = _next(first, now)
        if checkpoint is None:
            return None
        # 2. The objects, and only what was read back and proved gets a manifest: that one cannot be taken back.
        proved = _put_objects(store, first, previous, checkpoint)
        _prove(store, proved, previous)
        fault_point("archive.after_proof")
        with suppress(ImmutableError):
            store.put_once(manifest_key(first), proved.encoded())
        fault_point("archive.after_manifest")
        # 3. What stands there now counts, also where another process was faster.
        found = read_manifest(store, first)
        if found is None:
            raise ArchiveError(first, f"{manifest_key(first)} was written to {store!r} and is not there.")
    manifest, sha256 = found
    if manifest != proved:
        _prove(store, manifest, previous)
    # 4. The row, last: from here on the range is archived.
    _note(manifest, sha256, now)
    fault_point("archive.after_row")
    return Range(manifest.first, manifest.end)


def prove_again(first: int, last: int, *, store: Store) -> None:
    """Read the segments that hold leaves `first` to `last` back once more and prove them. Raises as `archive_audit`, changes nothing."""
    for segment in Segment.objects.filter(first__lte=last, end__gt=first).order_by("first"):
        manifest = noted_manifest(store, segment)
        _prove(store, manifest, manifest.previous)


def _next(first: int, now: datetime) -> Checkpoint | None:
    """The checkpoint the next segment ends at: the last one within SEGMENT_LEAVES, else the first one after them.

    Rows that no key of the log signed are passed over: what is archived stays.
    """
    later = Checkpoint.objects.filter(size__gt=first).order_by("size")
    near = later.filter(size__lte=first + SEGMENT_LEAVES).reverse()
    for row in chain(near.iterator(), later.iterator()):
        try:
            anchor_of(row, now=now)
        except ContradictedError:
            logger.exception("a checkpoint that no key of the log signed ends no segment")
        else:
            return row
    return None


def _put_objects(store: Store, first: int, previous: str | None, checkpoint: Checkpoint) -> Manifest:
    with scratch() as folder:
        staged = stage(first, checkpoint.size, folder)
        if staged.root != bytes(checkpoint.root):
            raise ArchiveError(
                first,
                f"Leaves {first} to {checkpoint.size - 1} do not lead to the root that was signed for them.",
            )
        fault_point("archive.after_stage")
        with Hands() as hands:
            for key, path in staged.files.items():
                hands.give(_put, store, key, path)
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
    """What stands in the store is this segment of this log. Raises ArchiveError."""
    first, key = manifest.first, manifest_key(manifest.first)
    if manifest.previous != previous:
        raise ArchiveError(first, f"{key} in {store!r} does not follow the segment before it.")
    signed = Checkpoint.objects.filter(size=manifest.end).first()
    if signed is None or signed.note != manifest.checkpoint:
        raise ArchiveError(
            first,
            f"{key} in {store!r} holds a checkpoint that the database does not know: it was set back, or the store is "
            "another log's.",
        )
    stored = leaves(first, manifest.end)
    prove_segment(store, manifest, tree=tiles_at(first), visit=lambda line: prove(line, next(stored)))


def _note(manifest: Manifest, sha256: bytes, now: datetime) -> None:
    try:
        with transaction.atomic():
            Segment.objects.create(first=manifest.first, end=manifest.end, manifest_sha256=sha256, at=now)
    except IntegrityError:
        # Who came as far at the same time noted the same.
        there = Segment.objects.filter(first=manifest.first, end=manifest.end).first()
        if there is None or bytes(there.manifest_sha256) != sha256:
            raise ArchiveError(
                manifest.first, f"The database notes another segment at leaf {manifest.first}."
            ) from None
