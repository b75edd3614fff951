"""Restore events that are missing from the database from the archive. Nothing is overwritten."""

import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from django.db import transaction

from agentauth.protocol.encoding import canonical_json, parse_timestamp
from agentauth.protocol.errors import EncodingError
from audit.archive.archive_format import ArchiveError, Line
from audit.archive.scratch import scratch
from audit.archive.segment_building import PAGE, leaves, prove
from audit.archive.segment_reading import download, noted_manifest, read_lines
from audit.db.partition_creation import ensure_partitions
from audit.log.event_encoding import event_body
from audit.models import Event, Leaf, Segment
from audit.stores import Store

_IDS = ("agent_id", "human_id", "service_provider_id", "grant_id")


@dataclass(slots=True)
class Restored:
    """How many segments were read, how many events they held, and how many were re-inserted."""

    segments: int = 0
    events: int = 0
    restored: int = 0


def restore_audit(*, store: Store, first: int = 0, end: int | None = None) -> Restored:
    """Read the segments that overlap `first` ≤ index < `end`, prove them, insert missing events.

    Lines are proved against the leaves. Each page of events is one transaction, so a repeated call
    continues an interrupted one. Raises ArchiveError if the archive differs from what the database
    recorded of it, TemporarilyUnavailableError if the store does not answer.
    """
    done = Restored()
    wanted = Segment.objects.filter(end__gt=first).order_by("first")
    for segment in wanted if end is None else wanted.filter(first__lt=end):
        done.segments += 1
        with scratch() as folder:
            pairs = _pairs(store, segment, folder)
            while page := list(islice(pairs, PAGE)):
                done.events += len(page)
                done.restored += _insert_missing(page)
    return done


def _pairs(store: Store, segment: Segment, folder: Path) -> Iterator[tuple[Line, Leaf]]:
    manifest = noted_manifest(store, segment)
    path = folder / "lines.gz"
    download(store, manifest.lines, path, segment.first)
    lines = read_lines(path, segment.first, segment.end)
    for line, leaf in zip(lines, leaves(segment.first, segment.end), strict=True):
        prove(line, leaf)
        yield line, leaf


def _insert_missing(page: list[tuple[Line, Leaf]]) -> int:
    with transaction.atomic():
        ids = [leaf.event_id for _, leaf in page]
        there = set(Event.objects.filter(id__in=ids).values_list("id", flat=True))
        missing = [_event(line, leaf) for line, leaf in page if leaf.event_id not in there]
        if missing:
            # Their month's partition may have been dropped.
            ensure_partitions(sorted(event.id for event in missing))
            Event.objects.bulk_create(missing)
    return len(missing)


def _event(line: Line, leaf: Leaf) -> Event:
    """The original row of an archived event. Raises ArchiveError if its JSON would differ."""
    try:
        event = _read(line.event(), line.salt)
        same = event.id == leaf.event_id and canonical_json(event_body(event)) == line.body
    except (LookupError, TypeError, ValueError, AttributeError, EncodingError):
        same = False
    if not same:
        raise ArchiveError(
            line.index,
            f"What is archived as leaf {line.index} is not an event in this log's format.",
        )
    return event


def _read(body: Mapping[str, Any], salt: bytes) -> Event:
    return Event(
        id=uuid.UUID(body["id"]),
        kind=body["kind"],
        at=parse_timestamp(body["at"]),
        actor_kind=body["actor"]["kind"],
        actor_id=body["actor"]["id"],
        **{name: uuid.UUID(body[name]) for name in _IDS if name in body},
        token_jti=body.get("token_jti"),
        outcome=body["outcome"],
        reason=body.get("reason"),
        request_id=body["request_id"],
        data=body["data"],
        salt=salt,
    )
