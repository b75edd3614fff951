"""The state of the log in words: beside a human's activity, and for admins with its copies."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from audit.log.load_shedding import ALARM_AT, MAX_WAITING_EVENTS
from audit.models import Checkpoint, Event, QueueEntry, Segment
from audit.verify.log_status import (
    EventPosition,
    EventStatus,
    LogStatus,
    log_coverage,
    read_log_status,
)

SHOWN = 10


def describe_log(
    status: LogStatus, positions: Mapping[UUID, EventPosition] | None = None
) -> dict[str, Any]:
    """What was checked of the log and, in `positions`, of a page's events; claims no more."""
    statuses = [position.status for position in (positions or {}).values()]
    counts = {each.value: statuses.count(each) for each in EventStatus}
    return {
        "state": _state(status, fits=not counts[EventStatus.WRONG] + counts[EventStatus.UNPROVED]),
        "status": status,
        "checkpoint": status.checkpoint,
        "newer": status.size - status.signed,
        "shown": len(statuses),
        "counts": counts,
    }


def _state(status: LogStatus, *, fits: bool) -> str:
    """One word for the state of the log; the worst applies."""
    if status.problem or not fits:
        return "wrong"
    if status.disabled_at:
        return "disabled"
    if status.is_late:
        return "late"
    if status.checkpoint is None:
        return "unsigned" if status.size else "empty"
    return "good"


def log_page(now: datetime) -> dict[str, Any]:
    """All that the control room's page of the log shows."""
    status, coverage = read_log_status(now=now), log_coverage()
    queue = QueueEntry.objects.order_by("pk")[:MAX_WAITING_EVENTS].count()
    oldest = (
        Event.objects.filter(queue_entry__isnull=False).order_by("pk").values_list("at", flat=True)
    )
    newest = Checkpoint.objects.order_by("-size").prefetch_related("copies", "cosignatures")
    return describe_log(status) | {
        "queue": queue,
        "queue_bound": MAX_WAITING_EVENTS,
        "queue_is_high": queue >= ALARM_AT * MAX_WAITING_EVENTS,
        "oldest": oldest.first() if queue else None,
        "places": [
            *(
                ("store", name, size, status.signed - size)
                for name, size in coverage.copied.items()
            ),
            *(
                ("witness", name, size, status.signed - size)
                for name, size in coverage.cosigned.items()
            ),
        ],
        "archived": coverage.archived,
        "unarchived": status.size - coverage.archived,
        "checkpoints": newest[:SHOWN],
        "segments": Segment.objects.order_by("-first")[:SHOWN],
    }
