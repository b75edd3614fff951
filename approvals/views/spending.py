"""What a person's agents spent against their budgets, and what they did on each day."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final
from zoneinfo import ZoneInfo

from django.db.models import BigIntegerField, Count, Q, Sum, Value
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Replace, TruncDate
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from agentauth.protocol.money import MINOR_DIGITS, Money
from approvals import sentences
from approvals.quotation_marks import quoted
from approvals.views.activity_search import start_of_day
from approvals.views.day_chart import Series, draw_days
from approvals.views.paging import newest_events
from approvals.views.request_helpers import human_of, require_sign_in
from approvals.views.usage_in_words import load_usage
from audit import kinds
from audit.new_ids import first_id_at, made_at
from registry.models import Agent, Grant, Human
from registry.services.agent_owners import own_agent_ids

DAYS: Final = 14
# At most this many events, the newest, are counted: it bounds the query on a busy account.
COUNTED: Final = 5_000
# Agents with a colour of their own; the others share one.
_DRAWN: Final = 4
_BUDGETS: Final = 20
# Lines of the table, the newest day and its busiest agents first.
_LINES: Final = 50
# Ids are made by hosts whose clocks may differ. The filter on `at` then selects exactly.
_SLACK: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class AgentDay:
    """The real calls of one agent on one day; `spent` is in minor units by currency.

    A permit that came too late for the service counts as allowed, once: its budget is debited.
    """

    day: date
    agent_id: Any
    allowed: int
    refused: int
    spent: Mapping[str, int]


@require_safe
@require_sign_in
def page(request: HttpRequest) -> HttpResponse:
    human, now = human_of(request), timezone.now()
    zone = ZoneInfo(human.time_zone)
    today = now.astimezone(zone).date()
    days = [today - timedelta(days=ago) for ago in range(DAYS - 1, -1, -1)]
    rows, counted_from = count_days(human, days[0])
    found = Agent.objects.filter(pk__in={row.agent_id for row in rows}).values_list("pk", "name")
    names = {pk: quoted(name) for pk, name in found}
    series = _series(rows, names, days)
    context = {
        "chart": draw_days(days, series) if rows else None,
        "series": series,
        "rows": [_table_row(row, names) for row in sorted(rows, key=_newest_first)[:_LINES]],
        "more_rows": max(len(rows) - _LINES, 0),
        "counted_from": counted_from,
        "counted": COUNTED,
        "days": DAYS,
        "budgets": _budgets(human, now),
        "shown_budgets": _BUDGETS,
    }
    return render(request, "spending.html", context)


def count_days(human: Human, first: date) -> tuple[list[AgentDay], datetime | None]:
    """The acts since the first day, by day of the person's zone and agent, in two queries.

    The second value is the time of the oldest counted event if there are more than COUNTED, else
    None.
    """
    start = start_of_day(first, human.time_zone)
    led = newest_events("human_id", human.pk).filter(pk__gte=first_id_at(start - _SLACK))
    since = None
    # The id alone, which is in the index, tells the time too.
    last = led.values_list("pk", flat=True)[COUNTED - 1 : COUNTED + 1]
    if len(last) > 1:
        oldest, next_older = last
        led = led.filter(pk__gte=oldest)
        # Not if the slack alone has more events.
        if made_at(next_older) >= start.timestamp():
            since = datetime.fromtimestamp(made_at(oldest), UTC)
    # An amount has all digits of its currency: without the dot it is in minor units.
    minor_text = Replace(KT("data__action__amount__value"), Value("."), Value(""))
    found = (
        led.filter(
            at__gte=start,
            kind__in=(kinds.DECISION_ALLOWED, kinds.DECISION_DENIED),
            data__dry_run__isnull=True,
        )
        # The event of a permit that came too late: the permit itself is counted.
        .exclude(reason="withheld")
        .annotate(
            day=TruncDate("at", tzinfo=ZoneInfo(human.time_zone)),
            currency=KT("data__action__amount__currency"),
        )
        .values("day", "agent_id", "currency")
        .annotate(
            allowed=Count("pk", filter=Q(kind=kinds.DECISION_ALLOWED)),
            refused=Count("pk", filter=Q(kind=kinds.DECISION_DENIED)),
            minor=Sum(Cast(minor_text, BigIntegerField()), filter=Q(kind=kinds.DECISION_ALLOWED)),
        )
        .order_by("day")
    )
    return _merge_currencies(found), since


def _merge_currencies(found: Iterable[Mapping[str, Any]]) -> list[AgentDay]:
    """One row per day and agent, of one per currency."""
    parts: dict[tuple[date, Any], list[Mapping[str, Any]]] = {}
    for row in found:
        parts.setdefault((row["day"], row["agent_id"]), []).append(row)
    return [
        AgentDay(
            day,
            agent_id,
            sum(row["allowed"] for row in rows),
            sum(row["refused"] for row in rows),
            {row["currency"]: row["minor"] for row in rows if row["currency"] and row["minor"]},
        )
        for (day, agent_id), rows in parts.items()
    ]


def _series(
    rows: Sequence[AgentDay], names: Mapping[Any, str], days: Sequence[date]
) -> list[Series]:
    """Series for the busiest agents, for the others together, and for all refusals."""
    totals: dict[Any, int] = {}
    for row in rows:
        totals[row.agent_id] = totals.get(row.agent_id, 0) + row.allowed
    busiest = sorted((pk for pk in totals if totals[pk]), key=lambda pk: (-totals[pk], str(pk)))
    drawn, rest = busiest[:_DRAWN], set(busiest[_DRAWN:])

    def by_day(wanted: set[Any]) -> list[int]:
        return [
            sum(row.allowed for row in rows if row.day == day and row.agent_id in wanted)
            for day in days
        ]

    series = [
        Series(names.get(pk) or _("an agent"), str(number), by_day({pk}))
        for number, pk in enumerate(drawn, 1)
    ]
    if rest:
        series.append(Series(_("other agents"), "other", by_day(rest)))
    refused = [sum(row.refused for row in rows if row.day == day) for day in days]
    if any(refused):
        series.append(Series(_("refused"), "refused", refused))
    return series


def _table_row(row: AgentDay, names: Mapping[Any, str]) -> dict[str, Any]:
    return {
        "day": row.day,
        "agent": names.get(row.agent_id) or _("an agent"),
        "agent_id": row.agent_id if row.agent_id in names else None,
        "allowed": row.allowed,
        "refused": row.refused,
        "spent": ", ".join(
            sentences.money(Money(minor, currency))
            for currency, minor in sorted(row.spent.items())
            if currency in MINOR_DIGITS
        ),
    }


def _newest_first(row: AgentDay) -> tuple[int, int, str]:
    return (-row.day.toordinal(), -row.allowed, str(row.agent_id))


def _budgets(human: Human, now: datetime) -> list[dict[str, Any]]:
    """The newest grants in force with budgets, and how much of each budget is used."""
    own = own_agent_ids(human)
    live = Grant.objects.live(now).filter(agent__in=own, envelope__budgets__0__isnull=False)
    grants = list(live.select_related("agent", "service_provider").order_by("-pk")[:_BUDGETS])
    used = load_usage(*{grant.agent for grant in grants})
    return [{"grant": grant, "use": used.bars(grant, now)} for grant in grants]
