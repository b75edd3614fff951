"""Requests that rules send to a person, and the job that records and announces them (ADR 44).

The rows and the time alone determine who may decide; the job does not affect it.
"""

import uuid
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

from django.db import transaction
from django.db.models import QuerySet

from approvals.models import Notification, NotificationChannel
from approvals.notifications.outbox import REMIND_BEFORE, quiet_end, tell_channels
from audit import kinds
from audit.models import Event
from audit.new_ids import first_id_at
from audit.services import SYSTEM, record
from kms.row_seals import not_ended
from registry.models import Agent, Grant, Human
from registry.services.decision_routing import Rosters, decider_of, read_rosters, route_grant
from registry.services.routing_rules import Cause, Route, Step
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import (
    lock_waiting,
    route_confirmation,
    routed_elsewhere,
)

What = Notification.What
_KINDS: Final = (kinds.REQUEST_ROUTED, kinds.REQUEST_PASSED_ON)
# A pending item is at most an hour old; the clocks of hosts differ by seconds.
_READ_BACK: Final = timedelta(hours=2)
# Large fields of an agent that no list shows.
_UNSEEN: Final = ("agent__manifest", "agent__public_jwk", "agent__description")


@dataclass(frozen=True, slots=True)
class Routed:
    """Requests and transactions of others that a person may decide now, oldest first."""

    grants: list[Grant] = field(default_factory=list)
    confirmations: list[Confirmation] = field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.grants) + len(self.confirmations)


NOTHING: Final = Routed()


def routed_to(human: Human, now: datetime) -> Routed:
    """What this person may decide for others. At most ten queries, whatever waits."""
    rosters = read_rosters(now)
    if rosters is None or str(human.pk) not in rosters.people:
        return NOTHING
    return Routed(
        [
            grant
            for rows in (_open_grants(now), _renewals(now))
            for grant in rows.exclude(agent__human=human)
            if decider_of(route_grant(grant, now, rosters), human)
        ],
        [
            row
            for row in routed_elsewhere(human, now)
            if decider_of(route_confirmation(row, now, rosters), human)
        ],
    )


def tell_approvers(*, now: datetime) -> int:
    """Record each step of pending items and notify new deciders. Returns the number of messages.

    Safe to run in parallel: a step is recorded with its request locked, and the outbox takes each
    message once.
    """
    rosters = read_rosters(now)
    if rosters is None:
        return 0
    waiting = [*_waiting_grants(now, rosters), *_waiting_confirmations(now, rosters)]
    known = _known_steps(waiting, now)
    for each in waiting:
        if known[each.subject] < len(each.route.steps):
            _record_steps(each, now)
    return _tell(waiting, now)


def tell_owner(*, owner: Human, what: Notification.What, subject: uuid.UUID, now: datetime) -> None:
    """Notify a person that another one decided for them, in the caller's transaction."""
    chosen = "for_requests" if what == Notification.What.DECIDED else "for_confirmations"
    rows = NotificationChannel.objects.filter(human=owner, **{chosen: True})
    channels = list(rows.select_related("human"))
    tell_channels(channels, what=what, now=now, subject=subject)
    for channel in channels:
        if later := quiet_end(channel, owner, now):
            told = Notification.objects.filter(channel=channel, what=what, subject=subject)
            told.update(due_at=later)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """One request or transaction, with its kind of notification."""

    subject: uuid.UUID
    grant: Grant
    route: Route
    what: Notification.What
    switch: str
    confirmation: Confirmation | None = None


def _open_grants(now: datetime) -> QuerySet[Grant]:
    """Grants of active people that wait for a decision or a new signature."""
    rows = Grant.objects.exclude(agent__status=Agent.Status.REVOKED)
    return _shown(rows.waiting(now) | rows.to_sign_again(now))


def _renewals(now: datetime) -> QuerySet[Grant]:
    """Grants of active people that wait to be renewed: a query of its own, by a small table."""
    return _shown(Grant.objects.to_renew(now).select_related("renewal"))


def _shown(rows: QuerySet[Grant]) -> QuerySet[Grant]:
    active = rows.filter(not_ended("agent__seal"), agent__human__status=Human.Status.ACTIVE)
    shown = active.select_related("agent__human", "service_provider").defer(*_UNSEEN)
    return shown.order_by("created_at", "pk")


def _waiting_grants(now: datetime, rosters: Rosters) -> Iterator[_Waiting]:
    for grant in [*_open_grants(now).filter(status=Grant.Status.PENDING), *_renewals(now)]:
        route = route_grant(grant, now, rosters)
        if route.rule is not None:
            yield _Waiting(grant.pk, grant, route, What.REQUEST, "for_requests")


def _waiting_confirmations(now: datetime, rosters: Rosters) -> Iterator[_Waiting]:
    for row in routed_elsewhere(None, now):
        route = route_confirmation(row, now, rosters)
        if route.rule is not None:
            yield _Waiting(
                row.pk, row.grant, route, What.CONFIRMATION, "for_confirmations", confirmation=row
            )


def _known_steps(waiting: Collection[_Waiting], now: datetime) -> Counter[uuid.UUID]:
    """How many steps the log has, by the id of the request or of the transaction.

    A grant may have many events: only those of the last two hours are read, and of a renewal only
    those since it was asked, as its request may be as recent.
    """
    found: Counter[uuid.UUID] = Counter()
    since = {each.subject: each.grant.asked_at(now) for each in waiting if not each.confirmation}
    recent = Event.objects.filter(pk__gte=first_id_at(now - _READ_BACK))
    events = recent.filter(grant_id__in={each.grant.pk for each in waiting}, kind__in=_KINDS)
    for grant_id, at, data in events.values_list("grant_id", "at", "data"):
        subject = uuid.UUID(data.get("confirmation_id") or str(grant_id))
        if at >= since.get(subject, at):
            found[subject] += 1
    return found


def _record_steps(each: _Waiting, now: datetime) -> None:
    with transaction.atomic():
        if not lock_waiting(each.grant, each.confirmation, now):
            return
        known = _known_steps([each], now)[each.subject]
        for step in each.route.steps[known:]:
            _record_step(each, step, now)


def _record_step(each: _Waiting, step: Step, now: datetime) -> None:
    rule, grant = each.route.rule, each.grant
    data: dict[str, Any] = {
        "rule": rule and rule.id,
        "group": step.group and step.group.id,
        "because": str(step.cause),
        "since": step.at.isoformat(),
    }
    if each.confirmation is not None:
        data["confirmation_id"] = str(each.confirmation.pk)
    record(
        kind=kinds.REQUEST_ROUTED if step.cause == Cause.RULE else kinds.REQUEST_PASSED_ON,
        actor=SYSTEM,
        at=now,
        agent_id=grant.agent_id,
        human_id=grant.agent.human_id,
        service_provider_id=grant.service_provider_id,
        grant_id=grant.pk,
        data=data,
    )


def _tell(waiting: Iterable[_Waiting], now: datetime) -> int:
    """Queue a message for each channel of each decider that has none yet, outside quiet hours."""
    waiting = list(waiting)
    deciders = {uuid.UUID(human) for each in waiting for human in each.route.deciders}
    by_human: dict[str, list[NotificationChannel]] = {}
    rows = NotificationChannel.objects.filter(human_id__in=deciders).select_related("human")
    for channel in rows:
        by_human.setdefault(str(channel.human_id), []).append(channel)
    told = set(
        Notification.objects.filter(
            channel__human_id__in=deciders,
            what__in=[What.REQUEST, What.REQUEST_ENDS, What.CONFIRMATION],
            subject__in=[each.subject for each in waiting],
        ).values_list("channel_id", "what", "subject")
    )
    sent = 0
    for each in waiting:
        new: dict[Notification.What, list[NotificationChannel]] = {}
        for human in each.route.deciders:
            for channel in by_human.get(human, ()):
                awake = not quiet_end(channel, channel.human, now)
                what = _due(each, channel, told, now)
                if what and awake and getattr(channel, each.switch):
                    new.setdefault(what, []).append(channel)
        for what, channels in new.items():
            with transaction.atomic():
                tell_channels(channels, what=what, now=now, subject=each.subject)
            sent += len(channels)
    return sent


def _due(
    each: _Waiting, channel: NotificationChannel, told: Collection[Any], now: datetime
) -> Notification.What | None:
    """The message that this channel has not had: the first one, or a request's reminder."""
    if (channel.pk, each.what, each.subject) not in told:
        return each.what
    ends = each.what == What.REQUEST and each.grant.open_until(now) <= now + REMIND_BEFORE
    if ends and (channel.pk, What.REQUEST_ENDS, each.subject) not in told:
        return What.REQUEST_ENDS
    return None
