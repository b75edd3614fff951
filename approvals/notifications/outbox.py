"""The outbox: one row for each message to each channel. Sending is in `delivery`.

What waits for a decision is its own outbox entry: the pending grant or confirmation commits with
its event, and the job adds a row for each channel that has none yet (ADR 41). So requests that the
previous release or a verifier process wrote get a notification too. A change to an account has no
such row: `tell_security` adds one in the transaction of the act.
"""

import uuid
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.db import IntegrityError, transaction
from django.db.models import Exists, F, OuterRef, Q, QuerySet

from approvals.models import Notification, NotificationChannel
from audit import kinds
from audit.models import Event
from audit.new_ids import first_id_at, new_id
from registry.models import Agent, Grant, Human
from registry.services.agent_owners import owners_of
from registry.services.decision_routing import Rosters, read_rosters, route_grant
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import route_confirmation

What = Notification.What
# When the reminder of a request is due, before the request expires. A request waits an hour.
REMIND_BEFORE: Final = timedelta(minutes=15)
# When the reminder of a grant that was used within USED_WITHIN is due, before the grant ends. A
# grant with a shorter life than a week has none: its owner has just decided.
REMIND_GRANT_BEFORE: Final = timedelta(days=3)
USED_WITHIN: Final = timedelta(days=7)
MIN_GRANT_LIFE: Final = timedelta(days=7)
# A message of `tell_channels` is still worth sending a day later.
MESSAGE_LIFE: Final = timedelta(days=1)
# Requests per run and kind. The next run takes the others.
BATCH: Final = 500
# The switch of a channel that each kind of message needs. Other kinds are always sent.
_SWITCHES: Final = {
    What.REQUEST: "for_requests",
    What.REQUEST_ENDS: "for_requests",
    What.GRANT_ENDS: "for_requests",
    What.CONFIRMATION: "for_confirmations",
    What.DECIDED: "for_requests",
    What.DECIDED_PAYMENT: "for_confirmations",
}


def add_waiting(*, now: datetime) -> int:
    """Add a row for each channel that was not yet told of what waits.

    Only for the owners who decide themselves: `routed_requests.tell_approvers` tells the people to
    whom a rule sends it. Returns how many rows it tried to add; 0 if every channel was told. Safe
    to run in parallel: of two rows for the same message the database refuses one.
    """
    grants = Grant.objects.waiting(now).exclude(agent__status=Agent.Status.REVOKED)
    confirmations = Confirmation.objects.waiting(now)
    if rosters := read_rosters(now):
        grants = grants.exclude(pk__in=_routed_grants(grants, now, rosters))
        confirmations = confirmations.exclude(
            pk__in=_routed_confirmations(confirmations, now, rosters)
        )
    ending = grants.filter(expires_at__lte=now + REMIND_BEFORE)
    # Also to a channel that was added since the grant was approved.
    end: dict[str, Any] = {"since": "valid_until", "until": "valid_until"}
    return (
        _add(What.REQUEST, grants, "agent", now)
        + _add(What.REQUEST_ENDS, ending, "agent", now)
        + _add(What.CONFIRMATION, confirmations, "grant__agent", now)
        + _add(What.GRANT_ENDS, _grants_to_renew(now), "agent", now, **end)
    )


def forget_sent(grant_id: uuid.UUID, *whats: Notification.What) -> None:
    """Delete the rows of these kinds about a grant, sent or not, in the caller's transaction.

    A channel gets each message about a subject once. But a renewal can be asked for twice, and a
    renewed grant ends again.
    """
    Notification.objects.filter(subject=grant_id, what__in=whats).delete()


def tell_security(
    *, human_id: Any, what: Notification.What, now: datetime, subject: uuid.UUID | None = None
) -> None:
    """Tell the human's channels for security, in the caller's transaction, at any hour."""
    channels = NotificationChannel.objects.filter(human_id=human_id, for_security=True)
    if what == What.RECOVERY_BEGUN:
        # A mail about it is always sent (approvals/services/recovery_alert_mail.py).
        channels = channels.exclude(kind=NotificationChannel.Kind.EMAIL)
    tell_channels(channels, what=what, now=now, subject=subject)


def tell_channels(
    channels: Iterable[NotificationChannel],
    *,
    what: Notification.What,
    now: datetime,
    subject: uuid.UUID | None = None,
) -> None:
    """Add a message that is due now to each of these channels, in the caller's transaction.

    It is worth sending for a day; `is_unwanted` may end it earlier. A channel that still waits to
    be told of changed settings is not told of the next change too: the message would be the same.
    """
    waiting: set[Any] = set()
    if what == What.CHANNEL_CHANGED:
        channels = list(channels)
        same = Notification.objects.filter(
            channel__in=channels, what=what, state=Notification.State.PENDING
        )
        waiting = set(same.values_list("channel_id", flat=True))
    subject = subject or new_id()
    Notification.objects.bulk_create(
        [
            Notification(
                channel=channel,
                what=what,
                subject=subject,
                created_at=now,
                due_at=now,
                expires_at=now + MESSAGE_LIFE,
            )
            for channel in channels
            if channel.pk not in waiting
        ],
        ignore_conflicts=True,
    )


def is_unwanted(now: datetime) -> Q:
    """The condition of rows that are no longer worth sending.

    A message about a request is not sent once the human switched it off, or, unless it says that
    another person decided, once the request is decided or has ended. A suspended human cannot
    decide, so they get security messages only. A deleted human gets none.
    """
    # Subqueries, not joins: Django turns an UPDATE with joins into `id IN (SELECT …)`, and
    # PostgreSQL does not check those conditions again after waiting for the row's lock. A message
    # that another process just sent would then become moot.
    channel = NotificationChannel.objects.filter(pk=OuterRef("channel_id"))
    grants = Grant.objects.waiting(now).exclude(agent__status=Agent.Status.REVOKED)
    waiting = Q(Exists(grants.filter(pk=OuterRef("subject")))) | Q(
        Exists(Confirmation.objects.waiting(now).filter(pk=OuterRef("subject")))
    )
    renewal = Grant.objects.to_renew(now).filter(pk=OuterRef("subject"))
    still_open = {
        What.GRANT_ENDS: Q(Exists(_ending_grants(now).filter(pk=OuterRef("subject")))),
        What.REQUEST: waiting | Q(Exists(renewal)),
        What.REQUEST_ENDS: waiting | Q(Exists(renewal)),
        What.DECIDED: Q(),
        What.DECIDED_PAYMENT: Q(),
    }
    wanted = ~Q(what__in=_SWITCHES) & Q(Exists(channel.exclude(human__status=Human.Status.DELETED)))
    for what, switch in _SWITCHES.items():
        willing = channel.filter(**{switch: True}, human__status=Human.Status.ACTIVE)
        wanted |= Q(what=what) & Q(Exists(willing)) & still_open.get(what, waiting)
    return Q(expires_at__lte=now) | ~wanted


def quiet_end(channel: NotificationChannel, human: Human, now: datetime) -> datetime | None:
    """When the channel's quiet hours end, if `now` is within them; by the human's clock."""
    start, end = channel.quiet_from, channel.quiet_until
    if start is None or end is None:
        return None
    zone = _zone_of(human)
    local = now.astimezone(zone)
    time = local.time()
    within = start <= time < end if start < end else time >= start or time < end
    if not within:
        return None
    day = local.date() if time < end else local.date() + timedelta(days=1)
    # When clocks go back, an hour occurs twice: take the end in the occurrence that `now` is in.
    return datetime.combine(day, end.replace(fold=local.fold), zone)


def _routed_grants(rows: QuerySet[Grant], now: datetime, rosters: Rosters) -> list[uuid.UUID]:
    """The requests on which their owner may not decide now."""
    every = rows.select_related("agent__human").defer("agent__manifest", "agent__public_jwk")
    return [
        row.pk
        for row in every
        if str(row.agent.human_id) not in route_grant(row, now, rosters).deciders
    ]


def _routed_confirmations(
    rows: QuerySet[Confirmation], now: datetime, rosters: Rosters
) -> list[uuid.UUID]:
    """The transactions that their owner may not confirm now."""
    unseen = ("grant__agent__manifest", "grant__agent__public_jwk")
    every = rows.select_related("grant__agent__human").defer(*unseen)
    return [
        row.pk
        for row in every
        if str(row.grant.agent.human_id) not in route_confirmation(row, now, rosters).deciders
    ]


def _grants_to_renew(now: datetime) -> QuerySet[Grant]:
    """Grants that end soon and were used lately."""
    tokens = Event.objects.filter(
        grant_id=OuterRef("pk"),
        pk__gte=first_id_at(now - USED_WITHIN),
        kind=kinds.TOKEN_ISSUED,
    )
    ending = _ending_grants(now).filter(decided_at__lte=F("valid_until") - MIN_GRANT_LIFE)
    return ending.filter(Exists(tokens))


def _ending_grants(now: datetime) -> QuerySet[Grant]:
    soon = Grant.objects.live(now).filter(valid_until__lte=now + REMIND_GRANT_BEFORE)
    return soon.filter(agent__status=Agent.Status.ACTIVE)


def _zone_of(human: Human) -> tzinfo:
    try:
        return ZoneInfo(human.time_zone)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        # This host's list of zones lacks it. One person's zone must not stop everybody's messages.
        return UTC


def _add(
    what: Notification.What,
    rows: QuerySet[Any],
    agent: str,
    now: datetime,
    *,
    since: str = "created_at",
    until: str = "expires_at",
) -> int:
    """Rows for `what` about each of `rows`, whose agent is at the path `agent`.

    `since` and `until` are columns of `rows`: a channel added after `since` gets no message, and
    none is sent after `until`.
    """
    told = Notification.objects.filter(
        channel=OuterRef("pk"), what=what, subject=OuterRef(OuterRef("pk"))
    )
    channels = NotificationChannel.objects.filter(**{_SWITCHES[what]: True})
    untold = channels.filter(
        ~Exists(told),
        human_id=OuterRef(f"{agent}__human_id"),
        human__status=Human.Status.ACTIVE,
        # A new channel is not told of what waited before.
        created_at__lte=OuterRef(since),
    )
    found = list(
        rows.filter(Exists(untold)).order_by(until).values_list("pk", since, until, agent)[:BATCH]
    )
    if not found:
        return 0
    owners = owners_of({row[3] for row in found})
    by_human: dict[Any, list[NotificationChannel]] = {}
    for channel in channels.filter(human_id__in=owners.values()).select_related("human"):
        by_human.setdefault(channel.human_id, []).append(channel)
    added = [
        Notification(
            channel=channel,
            what=what,
            subject=subject,
            created_at=now,
            due_at=quiet_end(channel, channel.human, now) or now,
            expires_at=expires_at,
        )
        for subject, at, expires_at, agent_id in found
        for channel in by_human.get(owners.get(agent_id), ())
        if channel.created_at <= at
    ]
    try:
        with transaction.atomic():
            Notification.objects.bulk_create(added, ignore_conflicts=True)
    except IntegrityError:
        # A channel was removed meanwhile. The next run adds the others.
        return 0
    return len(added)
