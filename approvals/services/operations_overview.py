"""The control room's numbers: what is decided, what waits, keys, log, spending, messages.

Each number takes one query over an index that reads a bounded number of rows, so the page is as
fast with a million events as with none.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from django.db.models import BigIntegerField, Count, Min, Q, Sum, TextField, Value
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Replace

from agentauth.protocol.money import MINOR_DIGITS, Money
from approvals.models import Notification
from audit import kinds
from audit.models import Event
from audit.new_ids import first_id_at, made_at
from kms.models import Key
from registry.models import Agent, Grant
from verifier.models import Confirmation

# Long enough for a steady number, short enough to show what happens now.
RATED: Final = timedelta(minutes=5)
# At most this many events of one kind are counted: about 2 ms on PostgreSQL. Above that, the rate
# is that of the newest ones.
COUNTED: Final = 10_000
SPENT_SINCE: Final = timedelta(hours=24)
# Decisions whose amounts are added up, newest first. Fewer, as reading JSON is slower.
ADDED: Final = 2_000


@dataclass(frozen=True, slots=True)
class Waiting:
    """The number of pending items, and when the oldest was created."""

    count: int
    oldest: datetime | None


@dataclass(frozen=True, slots=True)
class Spending:
    """What agents spent, by currency, and since when, if not all of SPENT_SINCE was added up."""

    amounts: list[Money]
    counted_from: datetime | None


@dataclass(frozen=True, slots=True)
class PurposeKeys:
    """The keys of one purpose: since when the newest signs, and when its successor begins."""

    purpose: str
    active_from: datetime | None
    next_from: datetime | None


@dataclass(frozen=True, slots=True)
class Overview:
    """All numbers of the control room's first page except those of the log."""

    allowed: float
    refused: float
    requests: Waiting
    confirmations: Waiting
    keys: list[PurposeKeys]
    spending: Spending
    # Messages that failed for good, and that will be tried again, by kind of channel with any.
    failing: Mapping[str, Mapping[str, int]]
    agents: Mapping[str, int]


def read_overview(now: datetime) -> Overview:
    """Every number as of `now`, in a dozen queries. Raises django.db errors."""
    pending = Confirmation.objects.filter(status=Confirmation.Status.PENDING, expires_at__gt=now)
    return Overview(
        allowed=rate_per_minute(kinds.DECISION_ALLOWED, now),
        refused=rate_per_minute(kinds.DECISION_DENIED, now),
        requests=_waiting(Grant.objects.waiting(now)),
        confirmations=_waiting(pending),
        keys=_keys(now),
        spending=read_spending(now),
        failing=_failing(),
        agents=_agents(),
    )


def rate_per_minute(kind: str, now: datetime) -> float:
    """Events of this kind per minute, over the last five minutes or the newest COUNTED."""
    newest = Event.objects.filter(kind=kind, pk__gte=first_id_at(now - RATED)).order_by("-pk")
    count, span = newest[:COUNTED].count(), RATED.total_seconds()
    if count == COUNTED:
        oldest = newest.values_list("pk", flat=True)[COUNTED - 1]
        span = max(1.0, now.timestamp() - made_at(oldest))
    return count / span * 60


def _waiting(rows: Any) -> Waiting:
    # What waits is at most an hour old, and an agent may have five requests waiting.
    return Waiting(**rows.aggregate(count=Count("pk"), oldest=Min("created_at")))


def _keys(now: datetime) -> list[PurposeKeys]:
    """By their times, as `kms.lifetimes` computes them; a job may record a switch later."""
    living = Key.objects.filter(state__in=[Key.State.NEXT, Key.State.ACTIVE])
    began: dict[str, list[datetime]] = {purpose: [] for purpose in Key.Purpose.values}
    for purpose, active_from in living.values_list("purpose", "active_from"):
        began[purpose].append(active_from)
    return [
        PurposeKeys(
            purpose,
            max((at for at in times if at <= now), default=None),
            min((at for at in times if at > now), default=None),
        )
        for purpose, times in began.items()
    ]


def read_spending(now: datetime) -> Spending:
    """Allowed spending in the last 24 hours, from the newest ADDED decisions."""
    since = now - SPENT_SINCE
    led = Event.objects.filter(kind=kinds.DECISION_ALLOWED, pk__gte=first_id_at(since))
    oldest = led.order_by("-pk").values_list("pk", flat=True)[ADDED - 1 : ADDED].first()
    if oldest is not None:
        led = led.filter(pk__gte=oldest)
    # An amount has all decimals of its currency: without the dot, it is in minor units.
    minor = Replace(KT("data__action__amount__value"), Value("."), Value(""))
    found = (
        led.annotate(currency=Cast(KT("data__action__amount__currency"), TextField()))
        .values("currency")
        .annotate(minor=Sum(Cast(minor, BigIntegerField())))
        .order_by("currency")
    )
    amounts = [
        Money(row["minor"], row["currency"])
        for row in found
        if row["currency"] in MINOR_DIGITS and row["minor"]
    ]
    counted = None if oldest is None else datetime.fromtimestamp(made_at(oldest), UTC)
    return Spending(amounts, counted)


def _failing() -> dict[str, dict[str, int]]:
    states = Notification.State
    found = (
        Notification.objects.filter(Q(state=states.DEAD) | Q(state=states.PENDING, attempts__gt=0))
        .values("channel__kind", "state")
        .annotate(n=Count("pk"))
    )
    counts: dict[str, dict[str, int]] = {}
    for row in found:
        of_kind = counts.setdefault(
            row["channel__kind"], {states.DEAD.value: 0, states.PENDING.value: 0}
        )
        of_kind[row["state"]] = row["n"]
    return counts


def _agents() -> dict[str, int]:
    found = dict(Agent.objects.values_list("status").annotate(Count("pk")))
    return {str(status.label): found.get(status.value, 0) for status in Agent.Status}
