"""Erasing what an event's commitments hide: the event, its hash and every proof over it stay as they are."""

import uuid
from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from django.db.models import Q, QuerySet

from audit import kinds
from audit.dropping import dropped_months
from audit.models import Event, Leaf, Opening
from audit.partitions import Month, month_of

PAGE: Final = 1_000
_FIRST: Final = uuid.UUID(int=0)
_MADE_THEIRS: Final = (kinds.AGENT_REGISTERED, kinds.AGENT_CLAIMED)


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


def erase_invitation(*, email: str, at: datetime) -> list[str]:
    """Delete the opening of the invitation that went to this address at this time, inside the caller's transaction; the ids of its event."""
    found = _invitations(email, event__at=at)
    Opening.objects.filter(pk__in=[pk for pk, _ in found]).delete()
    return [str(event) for _, event in found]


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
    """Whose openings the log says were erased, read when it is first asked, and again where it does not know.

    An event of an erasure is believed as far as the log bears it out, since a process that may add events could add one:
    its person was deleted, an agent it names is that person's, and another event it names is their denial or an invitation.
    """

    def __init__(self) -> None:
        # How many openings were missing and might be.
        self.count = 0
        self._deleted: set[uuid.UUID | None] = set()
        self._gone: set[uuid.UUID | None] = set()
        # By the agent or event that the event of an erasure names, the people it is about.
        self._told: dict[uuid.UUID | None, set[uuid.UUID | None]] = {}
        self._invitations: set[uuid.UUID] = set()
        # A release before this one erased invitations without saying which.
        self._untold = False
        self._dropped: set[Month] = set()
        self._owners: dict[uuid.UUID, uuid.UUID | None] = {}

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
        """Whether it names neither the person nor an agent of theirs, and its opening was erased all the same."""
        people = self._told.get(event.pk, set())
        if event.kind == kinds.GRANT_DENIED:
            return event.actor_kind == "human" and event.actor_id in map(str, people)
        is_invitation = event.kind == kinds.SETUP_CODE_CREATED and event.human_id is None
        return is_invitation and bool(people or event.pk in self._invitations or self._untold)

    def _read(self) -> None:
        # Leaves outlive their events.
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
        invitations = Event.objects.filter(kind=kinds.INVITATION_ERASED).values_list("data", flat=True)
        self._invitations = {each for data in invitations for each in named_ids(data, "events")}
        self._dropped = dropped_months()


def named_ids(data: Mapping[str, Any], member: str) -> list[uuid.UUID]:
    """The ids that an event of an erasure names; none if it has another form, as no service of ours writes."""
    try:
        return [uuid.UUID(str(each)) for each in data[member]]
    except (KeyError, TypeError, ValueError):
        return []


def owner_of(agent_id: uuid.UUID) -> uuid.UUID | None:
    """The person whose agent it is by the log: of its registration or claim, the first that names one.

    By the order of the leaves, in which no later event comes before an earlier one; by id while it waits for its number.
    """
    theirs: dict[str, Any] = {"agent_id": agent_id, "kind__in": _MADE_THEIRS, "human_id__isnull": False}
    numbered = Leaf.objects.filter(**theirs).order_by("leaf_index").values_list("human_id", flat=True)
    waiting = Event.objects.filter(**theirs).order_by("id").values_list("human_id", flat=True)
    return numbered.first() or waiting.first()


def _invitations(email: str, **of: Any) -> list[tuple[uuid.UUID, uuid.UUID]]:
    if not email:
        return []
    # By the events, of which there are few: openings are many, and no index leads to a value.
    sent = Opening.objects.filter(member="email", event__kind=kinds.SETUP_CODE_CREATED, **of)
    return [
        (pk, event_id)
        for pk, event_id, value in sent.values_list("pk", "event_id", "value")
        if str(value).casefold() == email.casefold()
    ]
