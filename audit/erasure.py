"""Erasing what an event's commitments hide: the event, its hash and every proof over it stay as they are."""

import uuid
from collections.abc import Collection
from typing import Final

from django.db.models import Q, QuerySet

from audit import kinds
from audit.dropping import dropped_months
from audit.models import Event, Opening
from audit.partitions import Month, month_of

PAGE: Final = 1_000
_FIRST: Final = uuid.UUID(int=0)


def erase_openings(
    *, human_id: uuid.UUID, agent_ids: Collection[uuid.UUID], email: str, since: uuid.UUID | None = None
) -> list[str]:
    """Delete the openings of everything recorded about this human and their agents, inside the caller's transaction.

    Returns the ids of those events that name neither: an invitation went to their address before they existed, and as an
    administrator they gave a reason for denying another's request. `since`: only of events with later ids
    (docs/protocol.md section 9).
    """
    for whose in (Q(human_id=human_id), *(Q(agent_id=agent_id) for agent_id in agent_ids)):
        _erase(Event.objects.filter(whose), since or _FIRST)
    denied = Opening.objects.filter(
        member="deny_reason",
        event__kind=kinds.GRANT_DENIED,
        event__actor_kind="human",
        event__actor_id=str(human_id),
    )
    others = [*_invitations(email), *denied.values_list("pk", "event_id")]
    Opening.objects.filter(pk__in=[pk for pk, _ in others]).delete()
    return sorted({str(event_id) for _, event_id in others})


def erase_of_agent(agent_id: uuid.UUID) -> int:
    """Delete the openings of everything recorded about an agent that nobody claimed, inside the caller's transaction; how many."""
    return _erase(Event.objects.filter(agent_id=agent_id), _FIRST)


def _erase(events: QuerySet[Event], after: uuid.UUID) -> int:
    """A person may have millions: a page of events at a time, so that no statement runs into the database's time limit."""
    erased, ids = 0, events.order_by("id").values_list("pk", flat=True)
    while page := list(ids.filter(pk__gt=after)[:PAGE]):
        erased += Opening.objects.filter(event_id__in=page).delete()[0]
        after = page[-1]
    return erased


class Erased:
    """Whose openings the log says were erased, read when it is first asked, and again where it does not know."""

    def __init__(self) -> None:
        # How many openings were missing and might be.
        self.count = 0
        self._ids: set[uuid.UUID | None] = set()
        # A release before this one erased invitations without saying which.
        self._untold = False
        self._dropped: set[Month] = set()

    def allows(self, event: Event) -> bool:
        """Whether an opening of this event may be missing: its person or agent was erased, or its month was dropped once."""
        known = self._knows(event)
        if not known:
            # Perhaps erased since.
            self._read()
            known = self._knows(event)
        self.count += known
        return known

    def _knows(self, event: Event) -> bool:
        of_nobody = event.human_id is None and event.agent_id is None
        named = {event.human_id, event.agent_id, event.pk} - {None}
        return (
            not named.isdisjoint(self._ids)
            or (of_nobody and self._untold)
            or (bool(self._dropped) and month_of(event.pk) in self._dropped)
        )

    def _read(self) -> None:
        deleted = Event.objects.filter(kind=kinds.HUMAN_DELETED).values_list("human_id", flat=True)
        gone = Event.objects.filter(kind=kinds.AGENT_DELETED).values_list("agent_id", flat=True)
        erased = Event.objects.filter(kind=kinds.HUMAN_ERASED).values_list("human_id", "data")
        told = {human_id for human_id, _ in erased}
        humans = set(deleted)
        self._untold = not humans <= told or any(data.get("late") for _, data in erased)
        listed = (
            uuid.UUID(each) for _, data in erased for name in ("agents", "events") for each in data[name]
        )
        self._ids = {*humans, *told, *gone, *listed}
        self._dropped = dropped_months()


def _invitations(email: str) -> list[tuple[uuid.UUID, uuid.UUID]]:
    if not email:
        return []
    # By the events, of which there are few: openings are many, and no index leads to a value.
    sent = Opening.objects.filter(member="email", event__kind=kinds.SETUP_CODE_CREATED)
    return [
        (pk, event_id)
        for pk, event_id, value in sent.values_list("pk", "event_id", "value")
        if str(value).casefold() == email.casefold()
    ]
