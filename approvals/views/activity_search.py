"""Find events of a person by agent, service, outcome, kind, dates, payee and amount, newest first.

The index of the person's (or the agent's) events leads. No index holds the other columns, so a page
examines a bounded number of events and says how far back it came. A payee is in the erasable text
of its event alone (ADR 46): the texts of the payments among the examined events are searched.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from django.db.models import Case, Q, QuerySet, When
from django.db.models.fields.json import KT
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentauth.protocol.capability import PAYEE
from approvals.views.decision_event_sentences import ACTS, DETAILS
from approvals.views.paging import id_or_none_of_ours, newest_events
from audit.models import Event, Opening
from audit.new_ids import first_id_at
from registry.models import Agent, Human, ServiceProvider
from registry.services.agent_owners import own_agent_ids, own_agents

# A page examines at most this many events: about 15 ms on PostgreSQL.
EXAMINED: Final = 5_000
# An id is made within milliseconds of its event's time; hosts' clocks differ by less than this.
_SLACK: Final = timedelta(hours=1)
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
# What only payments have.
_PAYMENTS: Final = ("payee", "least", "most")
NAMES: Final = ("agent", "service", "outcome", "kind", "from", "to", *_PAYMENTS)
# As a person writes it; money has at most 12 digits before the point and 4 after it.
_AMOUNT: Final = re.compile(r"[0-9]{1,12}([.,][0-9]{1,4})?")
OUTCOMES: Final = {
    "success": gettext_lazy("Allowed or done"),
    "denied": gettext_lazy("Refused"),
    "failed": gettext_lazy("Failed"),
}
KINDS: Final = {
    "transact": gettext_lazy("Payments"),
    "read": gettext_lazy("Reading"),
    "write": gettext_lazy("Creating and changing"),
    "delete": gettext_lazy("Deleting"),
    "custom": gettext_lazy("Service-specific actions"),
    "permission": gettext_lazy("Permissions and confirmations"),
    "agent": gettext_lazy("Agents and access tokens"),
    "account": gettext_lazy("Account and passkeys"),
}
# The beginnings of the kinds of events behind the choices that are not acts.
_BEGINNINGS: Final = {
    "permission": (
        "registry.grant.",
        "verifier.confirmation.",
        "approvals.request.",
        "approvals.second_step.",
    ),
    "agent": ("registry.agent.", "registry.token.", "registry.enrolment_code."),
    "account": (
        "registry.absence.",
        "registry.approval_rule.",
        "registry.approver.",
        "registry.approver_group.",
        "registry.human.",
        "approvals.channel.",
        "approvals.human.",
        "approvals.notification.",
        "approvals.passkey.",
        "approvals.recovery.",
        "approvals.setup_code.",
        "verifier.presence.",
    ),
}
# Names in one select. The page of each agent leads to its events too.
_AGENTS: Final = 100
_LISTED: Final = 1_000
NO_ONE: Final = uuid.UUID(int=0)


class Page(NamedTuple):
    """Events, newest first, and the cursor of the next page (None at the end).

    `reached` is set if a bounded search ended before the page was full: the time it reached.
    """

    events: list[Event]
    next: uuid.UUID | None
    reached: datetime | None


@dataclass(frozen=True, slots=True)
class ActivitySearch:
    """What a person filters by; empty texts filter nothing. `errors` is by the name of a field."""

    given: Mapping[str, str]
    human: Human
    start: datetime | None
    end: datetime | None
    errors: Mapping[str, str]
    # Amounts of payments, each in its own currency.
    least: Decimal | None = None
    most: Decimal | None = None

    @property
    def query(self) -> str:
        """The filters as a query string."""
        return urlencode({name: text for name, text in self.given.items() if text})

    @property
    def is_filtered(self) -> bool:
        return any(self.given.values())

    def page(self, after: uuid.UUID | None, size: int) -> Page:
        """At most `size` matching events before the id `after`, in at most seven queries."""
        column, value = self._whose()
        led = self._between(newest_events(column, value), after)
        rest = self._rest()
        floor = None
        if rest:
            ids = led.values_list("pk", flat=True)
            floor = ids[EXAMINED - 1 : EXAMINED].first()
            led = led.filter(rest) if floor is None else led.filter(rest, pk__gte=floor)
        if self._seeks_payments:
            led = Event.objects.filter(pk__in=self._payments(led)).order_by("-pk")
        found = list(led[: size + 1])
        if len(found) > size:
            return Page(found[:size], found[size - 1].pk, None)
        reached = (
            None if floor is None else Event.objects.values_list("at", flat=True).get(pk=floor)
        )
        return Page(found, floor, reached)

    def _whose(self) -> tuple[str, uuid.UUID]:
        """The column of an index, and its value."""
        if agent := self.given["agent"]:
            # Another person's agent may have many events, none of which would match.
            own = own_agents(self.human).filter(pk=id_or_none_of_ours(agent))
            # The agent alone: with the person, the planner may choose the index of the person's
            # events and read those of all their agents.
            return "agent_id", own.values_list("pk", flat=True).first() or NO_ONE
        return "human_id", self.human.pk

    def _between(self, rows: QuerySet[Event], after: uuid.UUID | None) -> QuerySet[Event]:
        """Those of the chosen days that are older than the id `after`."""
        if after is not None:
            rows = rows.filter(pk__lt=after)
        if self.start is not None:
            rows = rows.filter(pk__gte=first_id_at(self.start - _SLACK))
        if self.end is not None:
            rows = rows.filter(pk__lt=first_id_at(self.end + _SLACK))
        return rows

    @property
    def _seeks_payments(self) -> bool:
        return any(self.given[name] for name in _PAYMENTS)

    def _payments(self, among: QuerySet[Event]) -> list[uuid.UUID]:
        """The payments of the chosen amounts to the chosen payee, among a bounded number."""
        rows = among.values_list("pk", KT("data__action__amount__value"))
        found = [pk for pk, value in rows if self._is_amount(value)]
        if payee := self.given["payee"]:
            told = Opening.objects.filter(event_id__in=found, member=DETAILS)
            named = told.filter(**{f"value__arguments__{PAYEE}__icontains": payee})
            # A payee that is not a string names no one.
            found = [
                pk
                for pk, value in named.values_list("event_id", "value")
                if isinstance(value["arguments"][PAYEE], str)
            ]
        return found

    def _is_amount(self, value: object) -> bool:
        if self.least is None and self.most is None:
            return True
        if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
            return False
        amount = _decimal(value)
        above = self.least is None or amount >= self.least
        return above and (self.most is None or amount <= self.most)

    def _rest(self) -> Q:
        """By the columns that the leading index lacks."""
        wanted = Q(human_id=self.human.pk) if self.given["agent"] else Q()
        if service := self.given["service"]:
            wanted &= Q(service_provider_id=id_or_none_of_ours(service))
        if outcome := self.given["outcome"]:
            wanted &= Q(outcome=outcome)
        if self.start is not None:
            wanted &= Q(at__gte=self.start)
        if self.end is not None:
            wanted &= Q(at__lt=self.end)
        if kind := self.given["kind"]:
            wanted &= _of_kind(kind)
        if self._seeks_payments:
            wanted &= _of_kind("transact")
        return wanted


def read_search(given: Mapping[str, str], human: Human) -> ActivitySearch:
    """The filters of a query string; dates are days in the person's time zone."""
    texts = {name: given.get(name, "")[:64] for name in NAMES}
    texts |= {name: texts[name].strip() for name in _PAYMENTS}
    errors: dict[str, str] = {}
    for name, known in (("outcome", OUTCOMES), ("kind", KINDS)):
        if texts[name] and texts[name] not in known:
            errors[name] = _("Choose one from the list.")
    start, end = _period(texts, human.time_zone, errors)
    least, most = _amounts(texts, errors)
    return ActivitySearch(texts, human, start, end, errors, least, most)


def _period(
    texts: Mapping[str, str], zone: str, errors: dict[str, str]
) -> tuple[datetime | None, datetime | None]:
    days = {}
    for name in ("from", "to"):
        try:
            days[name] = _day(texts[name])
        except ValueError:
            days[name] = None
            errors[name] = _("Write the date as YYYY-MM-DD, such as 2026-11-30.")
    first, last = days["from"], days["to"]
    if first and last and first > last:
        errors["to"] = _("This day is before the first one.")
    start: datetime | None = None
    end: datetime | None = None
    if not errors:
        name = "from"
        try:
            if first is not None:
                start = _searchable(first, zone)
            name = "to"
            if last is not None:
                end = _searchable(last + timedelta(days=1), zone)
        except (OverflowError, ValueError):
            errors[name] = _("Choose a day closer to today.")
    return start, end


def _amounts(
    texts: Mapping[str, str], errors: dict[str, str]
) -> tuple[Decimal | None, Decimal | None]:
    least, most = (_amount(name, texts, errors) for name in ("least", "most"))
    if least is not None and most is not None and least > most:
        errors["most"] = _("This amount is below the other one.")
    return least, most


def _amount(name: str, texts: Mapping[str, str], errors: dict[str, str]) -> Decimal | None:
    text = texts[name]
    if text and not _AMOUNT.fullmatch(text):
        errors[name] = _("Write the amount as a number, such as 80 or 80.00.")
        return None
    return _decimal(text) if text else None


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "."))


def _day(text: str) -> date | None:
    """Raises ValueError for anything but YYYY-MM-DD: ISO 8601 also has 20261130 and 2026-W49-1."""
    day = date.fromisoformat(text) if text else None
    if day is not None and day.isoformat() != text:
        raise ValueError(text)
    return day


def _searchable(day: date, zone: str) -> datetime:
    """The first moment of a day in UTC. Raises OverflowError for one at the calendar's ends."""
    moment = start_of_day(day, zone).astimezone(UTC)
    # A search looks this much further.
    if not _FIRST + _SLACK <= moment <= _LAST - _SLACK:
        raise OverflowError
    return moment


def start_of_day(day: date, zone: str) -> datetime:
    """The first moment of a day in a zone, also where clocks change at midnight."""
    return datetime.combine(day, time.min, ZoneInfo(zone))


def _of_kind(kind: str) -> Q:
    if beginnings := _BEGINNINGS.get(kind):
        wanted = Q()
        for beginning in beginnings:
            wanted |= Q(kind__startswith=beginning)
        return wanted
    return Q(kind__in=ACTS, data__action__type=kind)


def choices(human: Human, agent: str = "") -> dict[str, Sequence[tuple[str, Any]]]:
    """What the selects of the form offer, in three queries: the chosen agent is always there."""
    own = own_agent_ids(human)
    chosen = Case(When(pk=id_or_none_of_ours(agent), then=0), default=1)
    agents = Agent.objects.filter(pk__in=own).order_by(chosen, "name", "pk")
    services = ServiceProvider.objects.filter(grants__agent__in=own).distinct()
    return {
        "agents": [(str(pk), name) for pk, name in agents.values_list("pk", "name")[:_AGENTS]],
        "services": [
            (str(pk), name)
            for pk, name in services.order_by("name", "pk").values_list("pk", "name")[:_LISTED]
        ],
        "outcomes": list(OUTCOMES.items()),
        "kinds": list(KINDS.items()),
    }
