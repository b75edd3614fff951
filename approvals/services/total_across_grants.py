"""What an agent could do in total with all its active grants, before and after an approval."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import NamedTuple

from django.utils.translation import gettext as _

from agentauth.protocol.behavioural_envelope import (
    Budget,
    Envelope,
    parse_envelope,
    single_currency,
)
from agentauth.protocol.capability import Capability, parse_capabilities
from agentauth.protocol.money import Money
from approvals import sentences
from approvals.quotation_marks import quoted
from approvals.services.term_choices import Terms
from registry.models import Grant

# How many budget periods one day and one calendar month can touch, in the budget's time zone.
_TOUCHED = {
    "day": {"day": 1, "week": 1, "month": 1, "total": 1},
    "month": {"day": 31, "week": 6, "month": 1, "total": 1},
}


@dataclass(frozen=True, slots=True)
class Total:
    """One line of the comparison, in words."""

    label: str
    before: str
    after: str


class _Service(NamedTuple):
    name: str
    audience: str


@dataclass(frozen=True, slots=True)
class _Part:
    """The terms of one grant at one service. Two services may have the same name."""

    service: "_Service"
    capabilities: Sequence[Capability]
    envelope: Envelope

    @property
    def currency(self) -> str | None:
        moves = any(each.max_amount is not None for each in self.capabilities)
        return single_currency(self.capabilities, self.envelope) if moves else None

    def ceiling(self, period: str) -> int | None:
        """Minor units that this grant alone can move in a period; None without a limit."""
        times = _TOUCHED[period]
        ceilings = [each.ceiling.minor * times[each.period] for each in self.envelope.budgets]
        if self.envelope.max_uses is not None:
            most = max(each.max_amount.minor for each in self.capabilities if each.max_amount)
            ceilings.append(self.envelope.max_uses * most)
        return min(ceilings, default=None)

    @property
    def budgets(self) -> dict[str, Budget]:
        """The budgets that count what the agent's other grants at the service spend, by counter."""
        return {each.key: each for each in self.envelope.budgets if each.period != "total"}


def other_grants(grant: Grant, now: datetime) -> list[Grant]:
    """The agent's active grants besides this one, oldest first."""
    others = Grant.objects.live(now).filter(agent=grant.agent_id).exclude(pk=grant.pk)
    return list(others.select_related("service_provider").order_by("created_at"))


def total_reach(grant: Grant, terms: Terms, others: Sequence[Grant]) -> list[Total]:
    """The agent's reach as it is, and with this grant on these terms besides the `others`."""
    kept = [_part(each) for each in others]
    after = [*kept, _Part(_service(grant), terms.capabilities, terms.envelope)]
    # A grant to renew is in force.
    before = [*kept, _part(grant)] if grant.status == Grant.Status.APPROVED else kept
    places = [*_places(after)]
    names = [service.name for service in {service for service, _currency in places if service}]
    spending = [
        Total(label, _spent(before, place, period), _spent(after, place, period))
        for place in places
        for period, label in _labels(*place, names)
    ]
    return [*spending, *_counts(before, after)]


def _part(grant: Grant) -> _Part:
    capabilities = parse_capabilities(grant.capabilities)
    return _Part(_service(grant), capabilities, parse_envelope(grant.envelope))


def _service(grant: Grant) -> _Service:
    return _Service(grant.service_provider.name, grant.service_provider.audience)


def _places(parts: Iterable[_Part]) -> Iterator[tuple[_Service | None, str]]:
    """Where money moves, as service and currency; then, for all services together, no service."""
    found = sorted({(each.service, each.currency) for each in parts if each.currency is not None})
    yield from found
    for currency, same in groupby(sorted(found, key=lambda each: each[1]), lambda each: each[1]):
        if len(list(same)) > 1:
            yield None, currency


def _labels(service: _Service | None, currency: str, names: Sequence[str]) -> list[tuple[str, str]]:
    if service is None:
        parts = {"currency": currency}
        return [
            ("day", _("Spend at all services per day (%(currency)s)") % parts),
            ("month", _("Spend at all services per month (%(currency)s)") % parts),
        ]
    at = quoted(service.name)
    if names.count(service.name) > 1:
        at = _("%(at)s (%(audience)s)") % {"at": at, "audience": service.audience}
    parts = {"at": at, "currency": currency}
    return [
        ("day", _("Spend at %(at)s per day (%(currency)s)") % parts),
        ("month", _("Spend at %(at)s per month (%(currency)s)") % parts),
    ]


def _spent(parts: Sequence[_Part], place: tuple[_Service | None, str], period: str) -> str:
    service, currency = place
    paying = [each for each in parts if each.currency == currency]
    services = {each.service for each in paying if service in {None, each.service}}
    sums = [
        _ceiling_at([each for each in paying if each.service == one], period) for one in services
    ]
    known = [each for each in sums if each is not None]
    if len(known) < len(sums):
        return _("without limit")
    return sentences.money(Money(sum(known), currency)) if known else _("nothing")


def _ceiling_at(parts: Sequence[_Part], period: str) -> int | None:
    """Minor units that these grants at one service can move together in a period."""
    ceilings = [each.ceiling(period) for each in parts]
    known = [each for each in ceilings if each is not None]
    if len(known) < len(ceilings):
        return None
    # Budgets of one period in one zone count what the other grants at the service spend in it, so
    # together they allow no more than the largest (docs/protocol.md section 3). Periods of two
    # zones begin at different times, so those allow their sum.
    shared = set.intersection(*(set(each.budgets) for each in parts))
    bounds = [
        max(each.budgets[key].ceiling.minor for each in parts)
        * _TOUCHED[period][parts[0].budgets[key].period]
        for key in shared
    ]
    return min([sum(known), *bounds])


def _counts(before: Sequence[_Part], after: Sequence[_Part]) -> list[Total]:
    def count(parts: Sequence[_Part], *, high: bool) -> str:
        found = [
            each
            for part in parts
            for each in part.capabilities
            if not high or each.type in sentences.DANGEROUS
        ]
        return sentences.whole(len(found)) if found else _("none")

    return [
        Total(_("Permissions"), count(before, high=False), count(after, high=False)),
        Total(_("Of these, with high risk"), count(before, high=True), count(after, high=True)),
    ]
