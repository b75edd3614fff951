"""Erase the openings of events. The events, their hashes and all proofs stay valid."""

import uuid
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from django.db.models import Q, QuerySet

from audit import kinds
from audit.db.partition_creation import Month, month_of
from audit.db.partition_dropping import dropped_months
from audit.models import Event, Leaf, Opening

PAGE: Final = 1_000
_FIRST: Final = uuid.UUID(int=0)
_MADE_THEIRS: Final = (kinds.AGENT_REGISTERED, kinds.AGENT_CLAIMED)


def erase_openings(
    *,
    human_id: uuid.UUID,
    agent_ids: Collection[uuid.UUID],
    email: str,
    since: uuid.UUID | None = None,
) -> list[str]:
    """Delete the openings of all events about this human and their agents.

    Runs in the caller's transaction. Returns the ids of the erased events that name neither:
    invitations to their address from before they existed, and reasons they gave as an administrator
    for denying another person's request. With `since`, only events with later ids (docs/protocol.md
    section 9).
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


def erase_invitation(*, email: str, at: datetime) -> list[str]:
    """Delete the openings of invitations sent to this address at this time; returns the event ids.

    Runs in the caller's transaction.
    """
    found = _invitations(email, event__at=at)
    Opening.objects.filter(pk__in=[pk for pk, _ in found]).delete()
    return [str(event) for _, event in found]


def erase_of_agent(agent_id: uuid.UUID) -> int:
    """Delete the openings of all events about an unclaimed agent; returns how many.

    Runs in the caller's transaction.
    """
    return _erase(Event.objects.filter(agent_id=agent_id), _FIRST)


def _erase(events: QuerySet[Event], after: uuid.UUID) -> int:
    """Delete by pages of events: a person may have millions, and a statement has a time limit."""
    erased, ids = 0, events.order_by("id").values_list("pk", flat=True)
    while page := list(ids.filter(pk__gt=after)[:PAGE]):
        erased += Opening.objects.filter(event_id__in=page).delete()[0]
        after = page[-1]
    return erased


class ErasedOpenings:
    """Which openings may be missing because the log says that they were erased.

    Reads the log at the first question, and again when an opening is missing without a known
    reason. A compromised process could insert an erasure event, so one counts only if the log
    confirms it: its person was deleted, a named agent is that person's, and any other named event
    is their denial or an invitation.
    """

    def __init__(self) -> None:
        # How many openings were missing for a known reason.
        self.count = 0
        self._deleted: set[uuid.UUID | None] = set()
        self._gone: set[uuid.UUID | None] = set()
        # The erased people, by each agent or event that their erasure event names.
        self._told: dict[uuid.UUID | None, set[uuid.UUID | None]] = {}
        self._invitations: set[uuid.UUID] = set()
        # An earlier release erased invitations without recording which.
        self._untold = False
        self._dropped: set[Month] = set()
        self._owners: dict[uuid.UUID, uuid.UUID | None] = {}

    def allows(self, event: Event) -> bool:
        """Whether an opening of this event may be missing.

        Its person or agent was erased, or its month was dropped at some time.
        """
        known = self._knows(event)
        if not known:
            # It may have been erased since the last read.
            self._read()
            known = self._knows(event)
        self.count += known
        return known

    def _knows(self, event: Event) -> bool:
        return (
            event.human_id in self._deleted
            or self._agent_went(event.agent_id)
            or self._went_alone(event)
            or (bool(self._dropped) and month_of(event.pk) in self._dropped)
        )

    def _agent_went(self, agent_id: uuid.UUID | None) -> bool:
        if agent_id is None or not (agent_id in self._gone or agent_id in self._told):
            return False
        if agent_id not in self._owners:
            self._owners[agent_id] = owner_of(agent_id)
        owner = self._owners[agent_id]
        return agent_id in self._gone if owner is None else owner in self._told.get(agent_id, ())

    def _went_alone(self, event: Event) -> bool:
        """Whether an erasure named this event, which names neither the person nor an agent."""
        people = self._told.get(event.pk, set())
        if event.kind == kinds.GRANT_DENIED:
            return event.actor_kind == "human" and event.actor_id in map(str, people)
        is_invitation = event.kind == kinds.SETUP_CODE_CREATED and event.human_id is None
        return is_invitation and bool(people or event.pk in self._invitations or self._untold)

    def _read(self) -> None:
        # Also from the leaves, which stay when their events are dropped.
        leaves = Leaf.objects.filter(kind=kinds.HUMAN_DELETED).values_list("human_id", flat=True)
        deleted = Event.objects.filter(kind=kinds.HUMAN_DELETED).values_list("human_id", flat=True)
        self._deleted = {*deleted, *leaves} - {None}
        gone = Event.objects.filter(kind=kinds.AGENT_DELETED).values_list("agent_id", flat=True)
        self._gone, self._told, self._owners = set(gone), {}, {}
        erased = Event.objects.filter(kind=kinds.HUMAN_ERASED, human_id__isnull=False)
        rows = [row for row in erased.values_list("human_id", "data") if row[0] in self._deleted]
        for human_id, data in rows:
            for each in (*named_ids(data, "agents"), *named_ids(data, "events")):
                self._told.setdefault(each, set()).add(human_id)
        told = {human_id for human_id, _ in rows}
        self._untold = not set(deleted) <= told or any(data.get("late") for _, data in rows)
        invitations = Event.objects.filter(kind=kinds.INVITATION_ERASED).values_list(
            "data", flat=True
        )
        self._invitations = {each for data in invitations for each in named_ids(data, "events")}
        self._dropped = dropped_months()


def named_ids(data: Mapping[str, Any], member: str) -> list[uuid.UUID]:
    """The ids that an erasure event names; empty for a malformed event, which we never write."""
    try:
        return [uuid.UUID(str(each)) for each in data[member]]
    except (KeyError, TypeError, ValueError):
        return []


def owner_of(agent_id: uuid.UUID) -> uuid.UUID | None:
    """The agent's person according to the log: the first one its registration or claim names.

    First by leaf order, which an inserted event cannot precede; by id for events without a number.
    """
    theirs: dict[str, Any] = {
        "agent_id": agent_id,
        "kind__in": _MADE_THEIRS,
        "human_id__isnull": False,
    }
    numbered = (
        Leaf.objects.filter(**theirs).order_by("leaf_index").values_list("human_id", flat=True)
    )
    waiting = Event.objects.filter(**theirs).order_by("id").values_list("human_id", flat=True)
    return numbered.first() or waiting.first()


def _invitations(email: str, **of: Any) -> list[tuple[uuid.UUID, uuid.UUID]]:
    if not email:
        return []
    # Select by the kind of event, of which there are few: openings are many, and values have no
    # index.
    sent = Opening.objects.filter(member="email", event__kind=kinds.SETUP_CODE_CREATED, **of)
    return [
        (pk, event_id)
        for pk, event_id, value in sent.values_list("pk", "event_id", "value")
        if str(value).casefold() == email.casefold()
    ]
