"""Plain sentences for what is granted, on pages and in the texts that a human signs."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from zoneinfo import ZoneInfo

from django.utils import formats
from django.utils.translation import gettext as _
from django.utils.translation import ngettext, pgettext

from agentauth.protocol.argument_constraint import Constraint, Scalar
from agentauth.protocol.behavioural_envelope import Budget, Envelope, TimeWindow
from agentauth.protocol.capability import PAYEE, Action, Capability
from agentauth.protocol.catalogue import NO_CATALOGUE, ArgumentWords, Catalogue
from agentauth.protocol.money import MINOR_DIGITS, Money
from agentauth.protocol.untrusted_text import legible
from approvals.catalogue_words import argument_name, argument_words, measured, service_sentence
from approvals.quotation_marks import quoted
from registry.services.lookalikes import Likeness, Whose

_SYMBOLS = {"EUR": "€", "USD": "$", "GBP": "£", "JPY": "¥", "INR": "₹", "KRW": "₩"}
_WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DANGEROUS = frozenset({"transact", "delete"})
RISKS = ("high", "medium", "low")
# Payments in the warning about a threshold without a budget.
_EXAMPLE = 10
# With three digits after it, a comma could stand between thousands.
_COMMA_DIGITS = 2


def money(amount: Money) -> str:
    """An amount as a reader writes it: €1,240.00, CHF 5.00."""
    digits = MINOR_DIGITS[amount.currency]
    number = formats.number_format(
        amount.value, decimal_pos=digits, use_l10n=True, force_grouping=True
    )
    symbol = _SYMBOLS.get(amount.currency)
    parts = {"number": number, "unit": symbol or amount.currency}
    # No line breaks between number and unit.
    return _("%(unit)s%(number)s") % parts if symbol else _("%(unit)s %(number)s") % parts


def typed_amount(amount: Money) -> str:
    """An amount as a reader types it, which `read_money` reads: 1240.00, in German 1240,00."""
    digits = MINOR_DIGITS[amount.currency]
    if digits > _COMMA_DIGITS:
        return amount.value
    return formats.number_format(amount.value, decimal_pos=digits, use_l10n=True)


def whole(number: int) -> str:
    """A whole number as a reader writes it: 1,048,576."""
    return formats.number_format(number, use_l10n=True, force_grouping=True)


def fingerprint(jkt: str) -> str:
    """The first 16 characters of a key's thumbprint in groups of four, easy to compare by eye."""
    return " ".join(jkt[start : start + 4] for start in range(0, 16, 4))


def moment(at: datetime, zone: str) -> str:
    """A date and time with its zone: 25 December 2026, 09:00 (Europe/Berlin).

    In the hour that summer time's end repeats, also the offset: (Europe/Berlin, UTC+01:00).
    """
    local = at.astimezone(ZoneInfo(zone))
    if local.utcoffset() != local.replace(fold=1 - local.fold).utcoffset():
        zone = f"{zone}, UTC{local.isoformat()[-6:]}"
    return f"{formats.date_format(local, pgettext('date format', 'j F Y, H:i'))} ({zone})"


def listed(words: Sequence[str], last: str) -> str:
    """A list as a sentence names it: a, b `last` c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def risk(capability: Capability, words: Catalogue = NO_CATALOGUE) -> str:
    """low, medium or high: what a mistake with it could cost. `words` may only raise it."""
    least = "low" if capability.type == "read" else "medium"
    if capability.type in DANGEROUS:
        least = "high"
    found = words.words_for(capability)
    return min(least, found.risk if found and found.risk else least, key=RISKS.index)


def risk_word(level: str) -> str:
    """A risk that a service adds, within a sentence."""
    return {"medium": _("medium"), "high": _("high")}[level]


def permission(
    capability: Capability,
    at: str,
    budgets: Sequence[Budget] = (),
    words: Catalogue = NO_CATALOGUE,
) -> str:
    """A verb phrase for what the capability permits at the service named `at`.

    `words` name its arguments and say in which unit to write their values, nothing else.
    """
    where = {"resource": capability.resource, "at": quoted(at)}
    match capability.type:
        case "read":
            text = _("read “%(resource)s” at %(at)s") % where
        case "write":
            text = _("create and change “%(resource)s” at %(at)s") % where
        case "delete":
            text = _("delete “%(resource)s” at %(at)s") % where
        case "transact":
            text = _spend(capability, where, budgets)
        case _:
            name = {"name": f"{capability.namespace}.{capability.name}"}
            text = _("use “%(name)s” on “%(resource)s” at %(at)s") % (where | name)
    rules = [
        constraint(each, argument_words(words, capability, each.argument))
        for each in capability.constraints
    ]
    return text + (
        _(", only where %(rules)s") % {"rules": listed(rules, _("and"))} if rules else ""
    )


def _spend(capability: Capability, where: dict[str, str], budgets: Sequence[Budget]) -> str:
    assert capability.max_amount is not None
    text = _("spend up to %(amount)s per payment at %(at)s (“%(resource)s”)") % (
        where | {"amount": money(capability.max_amount)}
    )
    ceilings = [budget_words(budget) for budget in budgets]
    return text + (
        _(", at most %(ceilings)s") % {"ceilings": listed(ceilings, _("and"))} if ceilings else ""
    )


def constraint(each: Constraint, words: ArgumentWords | None = None) -> str:
    """One limit on an argument, in words; `words` are the service's about this argument."""
    counts = each.operator == "max_length"
    values = [value_words(value, None if counts else words) for value in each.values]
    parts = {
        "argument": argument_name(each.argument, words),
        "value": values[0] if values else "",
        "or": listed(values, _("or")),
    }
    match each.operator:
        case "eq":
            return _("%(argument)s is %(value)s") % parts
        case "in":
            return _("%(argument)s is %(or)s") % parts
        case "not_in":
            return _("%(argument)s is not %(or)s") % parts
        case "min":
            return _("%(argument)s is at least %(value)s") % parts
        case "max":
            return _("%(argument)s is at most %(value)s") % parts
        case "prefix":
            return _("%(argument)s begins with %(value)s") % parts
    return _("%(argument)s has at most %(value)s characters") % parts


def value_words(value: Scalar, words: ArgumentWords | None = None) -> str:
    """A value of an argument, as sentences name it; in the unit that the service's words name."""
    if (with_unit := measured(value, words)) is not None:
        return with_unit
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    # The agent chose this text: quote it, so that it cannot pass for a sentence of ours.
    return whole(value) if isinstance(value, int) else quoted(value)


def budget_words(budget: Budget) -> str:
    """A ceiling and its period: €500.00 a day."""
    amount = {"amount": money(budget.ceiling)}
    match budget.period:
        case "day":
            return _("%(amount)s a day") % amount
        case "week":
            return _("%(amount)s a week") % amount
        case "month":
            return _("%(amount)s a month") % amount
    return _("%(amount)s in all") % amount


def budget_names() -> dict[str, str]:
    """The names of budgets by their periods."""
    return {
        "day": _("Daily budget"),
        "week": _("Weekly budget"),
        "month": _("Monthly budget"),
        "total": _("Total budget"),
    }


def weekdays() -> dict[str, str]:
    """The names of the days by their short forms, in the order of the week."""
    return {
        "mon": _("Monday"),
        "tue": _("Tuesday"),
        "wed": _("Wednesday"),
        "thu": _("Thursday"),
        "fri": _("Friday"),
        "sat": _("Saturday"),
        "sun": _("Sunday"),
    }


def window_words(window: TimeWindow) -> str:
    """Days and wall time of a window, with the zone."""
    names = weekdays()
    return _("%(days)s, %(start)s to %(end)s (%(zone)s)") % {
        "days": _days([names[day] for day in _WEEK if day in window.days], names),
        "start": f"{window.start // 60:02d}:{window.start % 60:02d}",
        "end": f"{window.end // 60:02d}:{window.end % 60:02d}",
        "zone": window.zone,
    }


def _days(days: Sequence[str], names: Mapping[str, str]) -> str:
    """Three or more consecutive days as a range, otherwise a list."""
    week = list(names.values())
    first = week.index(days[0])
    if len(days) > 2 and list(days) == week[first : first + len(days)]:  # noqa: PLR2004 — two days are listed
        return _("%(first)s to %(last)s") % {"first": days[0], "last": days[-1]}
    return listed(days, _("and"))


def limits(envelope: Envelope) -> list[str]:
    """One sentence for each limit of the envelope; budgets too, with their zone."""
    lines = []
    rate = envelope.max_requests_per_minute
    if rate is not None:
        lines.append(
            ngettext("At most %(n)s request a minute.", "At most %(n)s requests a minute.", rate)
            % {"n": whole(rate)}
        )
        if envelope.burst > 1:
            lines.append(_("Up to %(n)s of them at once.") % {"n": whole(envelope.burst)})
    lines += [
        _("At most %(ceiling)s, counted in %(zone)s time.")
        % {"ceiling": budget_words(budget), "zone": budget.zone}
        for budget in envelope.budgets
    ]
    if envelope.confirm_above is not None:
        lines.append(
            _("Each payment above %(amount)s needs a confirmation.")
            % {"amount": money(envelope.confirm_above)}
        )
    if envelope.allowed_time_windows is not None:
        windows = [window_words(window) for window in envelope.allowed_time_windows]
        lines.append(_("Only at these times: %(windows)s.") % {"windows": "; ".join(windows)})
    if envelope.max_uses is not None:
        lines.append(
            ngettext("At most %(n)s use in all.", "At most %(n)s uses in all.", envelope.max_uses)
            % {"n": whole(envelope.max_uses)}
        )
    if envelope.requires_human_online:
        lines.append(_("Only while the agent’s owner has “I'm here” switched on."))
    if envelope.max_session_seconds is not None:
        lines.append(
            _("Each access token is valid for at most %(n)s seconds.")
            % {"n": whole(envelope.max_session_seconds)}
        )
    return lines


def unasked_total(capabilities: Sequence[Capability], envelope: Envelope) -> list[str]:
    """Warn if a threshold has no budget: what several payments below it add up to, unasked."""
    each = _most_unasked(capabilities, envelope)
    count = min(envelope.max_uses or _EXAMPLE, _EXAMPLE)
    if each is None or envelope.budgets or count == 1:
        return []
    parts = {
        "n": count,
        "each": money(each),
        "sum": money(Money(count * each.minor, each.currency)),
    }
    return [
        _(
            "No budget limits the sum: %(n)s payments of %(each)s move %(sum)s without a "
            "confirmation."
        )
        % parts
    ]


def _most_unasked(capabilities: Sequence[Capability], envelope: Envelope) -> Money | None:
    """The largest payment that needs no confirmation; None without a threshold or a maximum."""
    threshold = envelope.confirm_above
    ceilings = [each.max_amount for each in capabilities if each.max_amount is not None]
    if threshold is None or threshold.minor == 0 or not ceilings:
        return None
    highest = max(ceilings, key=lambda ceiling: ceiling.minor)
    return threshold if threshold.within(highest) else highest


def permissions(
    at: str,
    capabilities: Sequence[Capability],
    envelope: Envelope,
    words: Catalogue = NO_CATALOGUE,
) -> list[str]:
    """One line per capability: our sentence, then the service's, if it has one.

    The subject is never a name: an agent may be called “Nobody”.
    """
    lines = []
    for each in capabilities:
        budgets = envelope.budgets if each.type == "transact" and each.max_amount else ()
        what = {"permission": permission(each, at, budgets, words)}
        said = permission_said(words, each)
        lines.append(_("The agent may %(permission)s.") % what + (f" {said}" if said else ""))
    return lines


def permission_said(words: Catalogue, capability: Capability) -> str:
    """What the service says about a permission, or nothing."""
    amount = capability.max_amount
    ceiling = _("up to %(amount)s") % {"amount": money(amount)} if amount else ""
    return service_sentence(words, capability, ceiling)


def act_said(words: Catalogue, action: Action) -> str:
    """What the service says about one act, or nothing."""
    return service_sentence(words, action, money(action.amount) if action.amount else "")


def likeness(each: Likeness) -> str:
    """Why the agent's name needs a second look, in a sentence that does not repeat it."""
    name = {"name": legible(each.name, in_quotes=True)}
    match each.whose:
        case Whose.SERVICE if each.exact:
            return (
                _(
                    "This agent calls itself “%(name)s”, the name of a service here, but it is "
                    "not that service."
                )
                % name
            )
        case Whose.SERVICE:
            return (
                _(
                    "This agent’s name looks like “%(name)s”, the name of a service here, but "
                    "it is not that service."
                )
                % name
            )
        case Whose.REGISTRY if each.exact:
            return (
                _(
                    "This agent calls itself “%(name)s”, the name of this registry, but it is "
                    "not part of it."
                )
                % name
            )
        case Whose.REGISTRY:
            return (
                _(
                    "This agent’s name looks like “%(name)s”, the name of this registry, but "
                    "it is not part of it."
                )
                % name
            )
        case Whose.AGENT if each.exact:
            return (
                _("You have another agent called “%(name)s”; this one has a different key.") % name
            )
        case Whose.AGENT:
            return (
                _(
                    "This agent’s name looks like “%(name)s”, the name of another of your "
                    "agents, but it is not that one."
                )
                % name
            )
    return _("This agent’s name mixes letters of several alphabets and may imitate another name.")


def recovery_sentence(at: datetime, zone: str) -> str:
    """The sentence about a recovered account, the same in signed texts, pages and activity."""
    return _("This account was recovered with a new passkey on %(at)s.") % {"at": moment(at, zone)}


def act(action: Action, at: str, words: Catalogue = NO_CATALOGUE) -> str:
    """One concrete act as a verb phrase: pay €240.00 to ACME at Demo Service (payments)."""
    where = {"resource": action.resource, "at": quoted(at)}
    match action.type:
        case "transact" if action.amount is not None:
            text = _("pay %(amount)s%(to)s at %(at)s (“%(resource)s”)") % (
                where | {"amount": money(action.amount), "to": _to(action.payee)}
            )
        case "read":
            text = _("read “%(resource)s” at %(at)s") % where
        case "write":
            text = _("create or change “%(resource)s” at %(at)s") % where
        case "delete":
            text = _("delete “%(resource)s” at %(at)s") % where
        case _:
            name = {"name": f"{action.namespace}.{action.name}"}
            text = _("use “%(name)s” on “%(resource)s” at %(at)s") % (where | name)
    return text + _with_arguments(action, words)


def acted(action: Action, at: str) -> str:
    """One allowed act as a verb phrase: paid €80.00 to ACME at Demo Service (payments)."""
    where = {"resource": action.resource, "at": quoted(at)}
    match action.type:
        case "transact" if action.amount is not None:
            text = _("paid %(amount)s%(to)s at %(at)s (“%(resource)s”)") % (
                where | {"amount": money(action.amount), "to": _to(action.payee)}
            )
        case "read":
            text = _("read “%(resource)s” at %(at)s") % where
        case "write":
            text = _("created or changed “%(resource)s” at %(at)s") % where
        case "delete":
            text = _("deleted “%(resource)s” at %(at)s") % where
        case _:
            name = {"name": f"{action.namespace}.{action.name}"}
            text = _("used “%(name)s” on “%(resource)s” at %(at)s") % (where | name)
    return text + _with_arguments(action)


def _to(payee: str | None) -> str:
    return "" if payee is None else _(" to %(payee)s") % {"payee": quoted(payee)}


def _with_arguments(action: Action, words: Catalogue = NO_CATALOGUE) -> str:
    """The arguments but the payee, whom the phrase names."""
    named = () if action.payee is None else (PAYEE,)
    shown = [
        argument(name, value, argument_words(words, action, name))
        for name, value in sorted(action.arguments.items())
        if name not in named
    ]
    details = [_("%(name)s %(value)s") % {"name": name, "value": value} for name, value in shown]
    return _(", with %(details)s") % {"details": listed(details, _("and"))} if details else ""


def argument(name: str, value: Scalar, words: ArgumentWords | None = None) -> tuple[str, str]:
    """An argument's name and value as a reader sees them, in every sentence and on every page."""
    return argument_name(name, words), value_words(value, words)


def act_in_brief(kind: str, amount: Money | None, at: str) -> str:
    """As `act`, of an action whose texts are not known: pay €80.00 at Demo Service."""
    where = {"at": quoted(at)}
    match kind:
        case "transact" if amount is not None:
            return _("pay %(amount)s at %(at)s") % (where | {"amount": money(amount)})
        case "read":
            return _("read something at %(at)s") % where
        case "write":
            return _("create or change something at %(at)s") % where
        case "delete":
            return _("delete something at %(at)s") % where
    return _("use a function of %(at)s") % where


def acted_in_brief(kind: str, amount: Money | None, at: str) -> str:
    """As `acted`, of an action whose texts are not known: paid €80.00 at Demo Service."""
    where = {"at": quoted(at)}
    match kind:
        case "transact" if amount is not None:
            return _("paid %(amount)s at %(at)s") % (where | {"amount": money(amount)})
        case "read":
            return _("read something at %(at)s") % where
        case "write":
            return _("created or changed something at %(at)s") % where
        case "delete":
            return _("deleted something at %(at)s") % where
    return _("used a function of %(at)s") % where
