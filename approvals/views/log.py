"""The state of the log in words: beside a human's activity, and for admins with its copies."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import UUID

from audit.log.load_shedding import ALARM_AT, MAX_WAITING_EVENTS
from audit.models import Checkpoint, Event, QueueEntry, Segment
from audit.verify.log_status import EventStatus, LogStatus, Stand, log_reach, log_standing

SHOWN = 10


def describe_log(standing: LogStatus, stands: Mapping[UUID, Stand] | None = None) -> dict[str, Any]:
    """What was checked of the log and, in `stands`, of a page's events; claims no more."""
    places = [stand.place for stand in (stands or {}).values()]
    counts = {place.value: places.count(place) for place in EventStatus}
    return {
        "state": _state(
            standing, fits=not counts[EventStatus.WRONG] + counts[EventStatus.UNPROVED]
        ),
        "standing": standing,
        "checkpoint": standing.checkpoint,
        "newer": standing.size - standing.signed,
        "shown": len(places),
        "counts": counts,
    }


def _state(standing: LogStatus, *, fits: bool) -> str:
    """One word for the state of the log; the worst applies."""
    if standing.problem or not fits:
        return "wrong"
    if standing.disabled_at:
        return "disabled"
    if standing.is_late:
        return "late"
    if standing.checkpoint is None:
        return "unsigned" if standing.size else "empty"
    return "good"


def log_page(now: datetime) -> dict[str, Any]:
    """All that the control room's page of the log shows."""
    standing, reach = log_standing(now=now), log_reach()
    queue = QueueEntry.objects.order_by("pk")[:MAX_WAITING_EVENTS].count()
    oldest = (
        Event.objects.filter(queue_entry__isnull=False).order_by("pk").values_list("at", flat=True)
    )
    newest = Checkpoint.objects.order_by("-size").prefetch_related("copies", "cosignatures")
    return describe_log(standing) | {
        "queue": queue,
        "queue_bound": MAX_WAITING_EVENTS,
        "queue_is_high": queue >= ALARM_AT * MAX_WAITING_EVENTS,
        "oldest": oldest.first() if queue else None,
        "places": [
            *(("store", name, size, standing.signed - size) for name, size in reach.copied.items()),
            *(
                ("witness", name, size, standing.signed - size)
                for name, size in reach.cosigned.items()
            ),
        ],
        "archived": reach.archived,
        "unarchived": standing.size - reach.archived,
        "checkpoints": newest[:SHOWN],
        "segments": Segment.objects.order_by("-first")[:SHOWN],
    }
