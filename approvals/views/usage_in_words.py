"""What an agent used at a service under one grant and under its others, in words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentauth.protocol.behavioural_envelope import Budget, Envelope, Ledger, parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.money import Money
from agentauth.protocol.usage_counters import spent_beside
from approvals import sentences
from registry.models import Agent, Grant
from verifier.models import GrantLedger

# Words for these grants, with times in the given zone.
_Under = Callable[[Sequence[Grant], str], str]


@dataclass(frozen=True, slots=True)
class GrantUsage:
    """The decided grants of some agents, and what each of them counted."""

    grants: Sequence[Grant]
    rows: Mapping[Any, GrantLedger]

    def bars(self, grant: Grant, now: datetime) -> list[dict[str, Any]]:
        """The counted limits of a grant: a label, what is used, the ceiling, and both as numbers.

        A periodic budget also counts what the agent's other grants at the service spent.
        """
        envelope = parse_envelope(grant.envelope or {})
        own = self.rows.get(grant.pk) or GrantLedger()
        ledger = own.counters(
            [self.rows[each.pk] for each in self._others(grant) if each.pk in self.rows]
        )
        bars = [_budget_bar(budget, ledger, now) for budget in envelope.budgets]
        if envelope.max_uses is not None:
            text = _("%(used)s of %(all)s uses") % {
                "used": sentences.whole(ledger.uses),
                "all": sentences.whole(envelope.max_uses),
            }
            bars.append(
                {
                    "label": _("Uses in all"),
                    "text": text,
                    "value": ledger.uses,
                    "max": envelope.max_uses,
                }
            )
        return bars

    def of_others(self, grant: Grant, envelope: Envelope, zone: str, now: datetime) -> list[str]:
        """What the agent's other grants at the service mean for these limits.

        Sentences on what the limits already count and what they do not count. `zone` is the
        reader's time zone.
        """
        others = self._others(grant)
        in_force = [each for each in others if _in_force(each, now)]
        ended = [each for each in others if not _in_force(each, now)]
        lines: list[str] = []
        for budget in envelope.budgets:
            if budget.period == "total":
                lines += _total(
                    budget, [self.rows[each.pk] for each in ended if each.pk in self.rows]
                )
                continue
            lines += self._spent_sentences(budget, ended, _under_ended, zone, now)
            lines += self._spent_sentences(budget, in_force, _under_others, zone, now)
        if _moves_money(grant):
            lines += self._uncounted_sentences(envelope, ended, _under_ended, zone, now)
            lines += self._uncounted_sentences(envelope, in_force, _under_others, zone, now)
        return lines + self._uses(envelope, ended, zone) + _at_once(envelope, in_force)

    def of_ended(self, grant: Grant, now: datetime) -> list[str]:
        """Of an ended grant: its spending in periods that still run, and how often it was used."""
        row = self.rows.get(grant.pk)
        if row is None:
            return []
        lines = [
            _(
                "%(when)s %(spent)s was spent under this grant. It also counts towards later "
                "grants with such a budget."
            )
            % {"when": _running(budget), "spent": _money(minor, budget)}
            for budget in parse_envelope(grant.envelope or {}).budgets
            if budget.period != "total"
            and (minor := spent_beside(row.spent_by_budget(), budget, now))
        ]
        used = ngettext("It was used %(n)s time.", "It was used %(n)s times.", row.uses)
        return [*lines, used % {"n": sentences.whole(row.uses)}]

    def _others(self, grant: Grant) -> list[Grant]:
        there = (grant.agent_id, grant.service_provider_id)
        at = [each for each in self.grants if (each.agent_id, each.service_provider_id) == there]
        return [each for each in at if each.pk != grant.pk]

    def _spent_sentences(
        self, budget: Budget, grants: Sequence[Grant], under: _Under, zone: str, now: datetime
    ) -> list[str]:
        parts = self._parts(budget, grants, under, zone, now) | {
            "ceiling": sentences.budget_words(budget)
        }
        words = _(
            "%(when)s %(spent)s was already spent under %(under)s. It counts towards the "
            "budget of %(ceiling)s."
        )
        return [words % parts] if "spent" in parts else []

    def _uncounted_sentences(
        self, envelope: Envelope, grants: Sequence[Grant], under: _Under, zone: str, now: datetime
    ) -> list[str]:
        """What these grants spent that no budget counts, in the shortest period that has any."""
        counted = [each for each in envelope.budgets if each.period != "total"]
        those = [
            each
            for each in grants
            if each.pk in self.rows
            and not any(
                spent_beside(self.rows[each.pk].spent_by_budget(), one, now) for one in counted
            )
        ]
        currencies = {key[:3] for each in those for key in self.rows[each.pk].spent}
        words = _(
            "%(when)s %(spent)s was already spent under %(under)s. No budget of this grant "
            "counts it."
        )
        for period in ("day", "week", "month"):
            found = [
                self._parts(Budget(Money(0, currency), period, zone), those, under, zone, now)
                for currency in sorted(currencies)
            ]
            if lines := [words % parts for parts in found if parts]:
                return lines
        return []

    def _parts(
        self, budget: Budget, grants: Sequence[Grant], under: _Under, zone: str, now: datetime
    ) -> dict[str, str]:
        spent = {
            each.pk: spent_beside(self.rows[each.pk].spent_by_budget(), budget, now)
            for each in grants
            if each.pk in self.rows
        }
        those = [each for each in grants if spent.get(each.pk)]
        if not those:
            return {}
        total = _money(sum(spent.values()), budget)
        return {"when": _running(budget), "spent": total, "under": under(those, zone)}

    def _uses(self, envelope: Envelope, ended: Sequence[Grant], zone: str) -> list[str]:
        used = [each for each in ended if each.pk in self.rows and self.rows[each.pk].uses]
        if envelope.max_uses is None or not used:
            return []
        count = sum(self.rows[each.pk].uses for each in used)
        parts = {"n": sentences.whole(count), "under": _under_ended(used, zone)}
        return [
            ngettext(
                "This grant starts a new count of uses: %(n)s use under %(under)s does not count.",
                "This grant starts a new count of uses: %(n)s uses under %(under)s do not count.",
                count,
            )
            % parts
        ]


def load_usage(*agents: Agent) -> GrantUsage:
    """What these agents used, in two queries however many grants there are."""
    given = Grant.objects.filter(agent__in=agents, capabilities__isnull=False)
    rows = GrantLedger.objects.filter(grant__in=given)
    return GrantUsage(list(given), {row.grant_id: row for row in rows})


def _budget_bar(budget: Budget, ledger: Ledger, now: datetime) -> dict[str, Any]:
    minor, (_start, here) = ledger.used_minor(budget, now), ledger.spent_minor(budget, now)
    text = _("%(spent)s spent") % {"spent": _money(minor, budget)}
    if minor > here:
        text += _(", %(beside)s of it under other grants") % {
            "beside": _money(minor - here, budget)
        }
    label = sentences.budget_words(budget)
    return {
        "label": label[:1].upper() + label[1:],
        "text": text,
        "value": minor,
        "max": budget.ceiling.minor,
    }


def _total(budget: Budget, ended: Sequence[GrantLedger]) -> list[str]:
    spent = sum(_most(row, budget.ceiling.currency) for row in ended)
    if not spent:
        return []
    parts = {"ceiling": sentences.budget_words(budget), "spent": _money(spent, budget)}
    words = _(
        "This grant starts a new total (%(ceiling)s): %(spent)s spent under earlier grants "
        "does not count."
    )
    return [words % parts]


def _most(row: GrantLedger, currency: str) -> int:
    totals = [
        minor
        for key, (start, minor) in row.spent_by_budget().items()
        if start == "total" and key.startswith(f"{currency}/")
    ]
    # Several totals in one currency counted the same payments, so take the largest.
    return max(totals, default=0)


def _at_once(envelope: Envelope, in_force: Sequence[Grant]) -> list[str]:
    rated = any(parse_envelope(each.envelope).rate for each in in_force)
    if envelope.rate is None or not rated:
        return []
    return [
        _("Another grant at this service is active. Its requests per minute come on top of these.")
    ]


def _moves_money(grant: Grant) -> bool:
    asked = parse_capabilities(grant.capabilities or grant.requested_capabilities)
    return any(each.max_amount is not None for each in asked)


def _in_force(grant: Grant, now: datetime) -> bool:
    return grant.status_at(now) in {Grant.Status.APPROVED, Grant.Status.SUSPENDED}


def _running(budget: Budget) -> str:
    return {"day": _("Today"), "week": _("This week"), "month": _("This month")}[budget.period]


def _under_ended(grants: Sequence[Grant], zone: str) -> str:
    ends = [end for each in grants if (end := each.ended_at or each.valid_until) is not None]
    parts = {"n": sentences.whole(len(grants)), "end": sentences.moment(max(ends), zone)}
    return (
        ngettext(
            "a grant that ended on %(end)s",
            "%(n)s grants, the last of which ended on %(end)s",
            len(grants),
        )
        % parts
    )


def _under_others(grants: Sequence[Grant], zone: str) -> str:
    return ngettext("another active grant", "%(n)s other active grants", len(grants)) % {
        "n": sentences.whole(len(grants))
    }


def _money(minor: int, budget: Budget) -> str:
    return sentences.money(Money(minor, budget.ceiling.currency))
