"""The fields of the approval page: each is read strictly and must narrow the term that it changes.

`agentauth.protocol` alone decides whether a term narrows another. An invalid field is recorded with
its message and changes nothing, so that the page can show every message beside its field.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar

from django.utils.translation import gettext as _

from agentauth.protocol.argument_constraint import Constraint, Scalar
from agentauth.protocol.behavioural_envelope import (
    Budget,
    Envelope,
    TimeWindow,
    narrows_envelope,
    parse_envelope,
)
from agentauth.protocol.capability import Capability, is_resource, parse_capability
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.hours_and_periods import DAYS
from agentauth.protocol.money import Money
from approvals import sentences
from registry.refusal_translation import refusal_text

Term = TypeVar("Term", Capability, Envelope)
MIDNIGHT: Final = 1440
_COMMA_DECIMALS: Final = re.compile(r"[0-9]+,[0-9]{1,2}")
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,15})")
_CLOCK: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
# The posted values of a set of checkboxes. An empty set differs from an absent field.
SETS: Final = ("only.", "week.")


class InvalidChoicesError(InvalidRequestError):
    """Fields of the approval page that are unreadable or widen; `choices` has name and message."""

    def __init__(self, wrong: Mapping[str, str]) -> None:
        super().__init__(next(iter(wrong.values())), choices=[list(each) for each in wrong.items()])


@dataclass(frozen=True, slots=True)
class Fields:
    """The posted choices, and the error of each field read so far."""

    choices: Mapping[str, str]
    wrong: dict[str, str] = field(default_factory=dict)
    # The fields that some term has.
    known: set[str] = field(default_factory=set)

    def has(self, name: str) -> bool:
        """Is the field filled in? A blank one keeps what the agent asked for."""
        self.known.add(name)
        text = self.choices.get(name)
        return text is not None and (bool(text.strip()) or name.startswith(SETS))

    def apply(self, name: str, old: Term, change: Callable[[Term, str], Term]) -> Term:
        """`old` as the field `name` changes it; `old` itself if the field is blank or wrong."""
        if not self.has(name):
            return old
        try:
            new = change(old, self.choices[name])
            _check_narrows(new, old)
        except InvalidRequestError as error:
            self.wrong[name] = refusal_text(error)
            return old
        return new


def _check_narrows(new: Capability | Envelope, old: Capability | Envelope) -> None:
    if isinstance(new, Envelope) and isinstance(old, Envelope):
        fits = narrows_envelope(new, old)
    else:
        assert isinstance(new, Capability)
        assert isinstance(old, Capability)
        fits = narrows([new], [old])
    if not fits:
        raise InvalidRequestError(
            _("This is more than the agent asked for. You can only narrow it.")
        )
    try:
        # A narrower term may still be invalid: a number above every limit, a text too long.
        if isinstance(new, Envelope):
            parse_envelope(new.to_json())
        else:
            parse_capability(new.to_json())
    except InvalidRequestError:
        # The parser's message names members of the API, which people do not see.
        raise InvalidRequestError(
            _("The registry does not accept this. Enter something else, or empty the field.")
        ) from None


def narrow_capability(fields: Fields, index: int, asked: Capability) -> Capability:
    """The permission with this index as its fields narrow it."""
    chosen = fields.apply(f"amount.{index}", asked, _lower_amount)
    chosen = fields.apply(f"resource.{index}", chosen, _go_below)
    for place, each in enumerate(asked.constraints):

        def tighten(
            old: Capability, text: str, place: int = place, each: Constraint = each
        ) -> Capability:
            constraints = list(old.constraints)
            constraints[place] = _tighten(each, text)
            return replace(old, constraints=tuple(constraints))

        name = "only" if each.operator == "in" else "limit"
        chosen = fields.apply(f"{name}.{index}.{place}", chosen, tighten)
    return chosen


def _lower_amount(capability: Capability, text: str) -> Capability:
    if capability.max_amount is None:
        raise InvalidRequestError(_("This permission has no amount."))
    return replace(capability, max_amount=read_money(text, capability.max_amount.currency))


def _go_below(capability: Capability, text: str) -> Capability:
    resource = f"{capability.resource}/{text.strip()}"
    if not is_resource(resource):
        raise InvalidRequestError(
            _(
                "Enter a path such as reports/2026: letters, digits and . _ ~ - between slashes, "
                "255 characters in all."
            )
        )
    return replace(capability, resource=resource)


def _tighten(each: Constraint, text: str) -> Constraint:
    match each.operator:
        case "in":
            kept = [value for place, value in enumerate(each.values) if str(place) in text.split()]
            if not kept:
                raise InvalidRequestError(
                    _("Leave at least one value on, or switch the permission off.")
                )
            return replace(each, value=tuple(kept))
        case "not_in":
            return replace(each, value=(*each.values, _value_like(each.values[0], text)))
        case "prefix":
            return replace(each, value=text)
        case "min" | "max" | "max_length":
            return replace(each, value=_value_like(each.values[0], text))
    raise InvalidRequestError(_("This value is fixed."))


def _value_like(sample: Scalar, text: str) -> Scalar:
    """The typed text as a value of the sample's type."""
    if isinstance(sample, str):
        return text
    if isinstance(sample, bool) or not _INTEGER.fullmatch(text.strip()):
        raise InvalidRequestError(_("Enter a whole number."))
    return int(text)


def narrow_envelope(fields: Fields, asked: Envelope, currency: str | None, zone: str) -> Envelope:
    """The limits as their fields narrow them. `zone` is where new budgets and hours count."""
    chosen = _narrow_money(fields, _narrow_counts(fields, asked), currency, zone)
    chosen = fields.apply(
        "present", chosen, lambda old, _text: replace(old, requires_human_online=True)
    )
    return _narrow_hours(fields, chosen, zone)


def _narrow_counts(fields: Fields, asked: Envelope) -> Envelope:
    chosen = fields.apply("rate", asked, _lower_rate)
    chosen = fields.apply("burst", chosen, _lower_burst)
    chosen = fields.apply(
        "uses", chosen, lambda old, text: replace(old, max_uses=read_number(text))
    )
    return fields.apply(
        "token", chosen, lambda old, text: replace(old, max_session_seconds=read_number(text))
    )


def _narrow_money(fields: Fields, asked: Envelope, currency: str | None, zone: str) -> Envelope:
    chosen = asked
    for index in range(len(asked.budgets)):

        def lower(old: Envelope, text: str, index: int = index) -> Envelope:
            budgets = list(old.budgets)
            ceiling = read_money(text, budgets[index].ceiling.currency)
            budgets[index] = replace(budgets[index], ceiling=ceiling)
            return replace(old, budgets=tuple(budgets))

        chosen = fields.apply(f"budget.{index}", chosen, lower)
    if currency is None:
        return chosen
    for name, period in (("daily", "day"), ("total", "total")):

        def add(old: Envelope, text: str, period: str = period) -> Envelope:
            added = Budget(read_money(text, currency), period, zone)
            return replace(old, budgets=(*old.budgets, added))

        chosen = fields.apply(name, chosen, add)
    return fields.apply(
        "confirm",
        chosen,
        lambda old, text: replace(old, confirm_above=read_money(text, currency, zero=True)),
    )


def _lower_rate(envelope: Envelope, text: str) -> Envelope:
    rate, burst = read_number(text), envelope.max_burst
    # A burst above the rate is invalid, so lowering the rate lowers both.
    return replace(
        envelope,
        max_requests_per_minute=rate,
        max_burst=None if burst is None else min(burst, rate),
    )


def _lower_burst(envelope: Envelope, text: str) -> Envelope:
    burst, rate = read_number(text), envelope.max_requests_per_minute
    if rate is not None and burst > rate:
        raise InvalidRequestError(_("This must not be above the requests per minute."))
    return replace(envelope, max_burst=burst)


def week_of(zone: str) -> TimeWindow:
    """Every hour of the week: what the page shows if the agent asked for no hours."""
    return TimeWindow(DAYS, 0, MIDNIGHT, zone)


def _narrow_hours(fields: Fields, envelope: Envelope, zone: str) -> Envelope:
    asked = envelope.allowed_time_windows
    shown = (week_of(zone),) if asked is None else asked
    chosen = tuple(
        window
        for index, old in enumerate(shown)
        if (window := _narrow_window(fields, index, old, limited=asked is not None)) is not None
    )
    if not chosen:
        fields.wrong["week.0"] = _("Leave at least one day on.")
        return envelope
    return envelope if chosen == shown else replace(envelope, allowed_time_windows=chosen)


def _narrow_window(
    fields: Fields, index: int, old: TimeWindow, *, limited: bool
) -> TimeWindow | None:
    """One window, or None if all its days are off. A new window may have any hours."""
    days = fields.choices[f"week.{index}"].split() if fields.has(f"week.{index}") else old.days
    if not set(days) <= set(old.days):
        fields.wrong[f"week.{index}"] = _("You can only remove days.")
        return old
    start = _clock(fields, f"from.{index}", old.start)
    end = _clock(fields, f"to.{index}", old.end)
    # A field of the browser cannot show 24:00.
    end = MIDNIGHT if fields.has(f"to.{index}") and end == 0 else end
    if start == end:
        fields.wrong[f"to.{index}"] = _("The end must differ from the beginning.")
        return old
    new = TimeWindow(tuple(day for day in DAYS if day in days), start, end, old.zone)
    if limited and not new.lies_inside(old):
        name = "to" if old.start <= start < old.until else "from"
        fields.wrong[f"{name}.{index}"] = _("Choose hours within these: %(hours)s.") % {
            "hours": sentences.window_words(old)
        }
        return old
    return new if new.days else None


def _clock(fields: Fields, name: str, old: int) -> int:
    """Minutes after midnight."""
    if not fields.has(name):
        return old
    found = _CLOCK.fullmatch(fields.choices[name].strip())
    if found is None:
        fields.wrong[name] = _("Enter a time such as 09:00.")
        return old
    return int(found[1]) * 60 + int(found[2])


def read_number(text: str) -> int:
    """A whole number above zero. Raises InvalidRequestError."""
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip()):
        raise InvalidRequestError(_("Enter a whole number above zero."))
    return int(text)


def read_money(text: str, currency: str, *, zero: bool = False) -> Money:
    """An amount as people type it: "40", "40.00", "40,00". Raises InvalidRequestError."""
    value = text.strip()
    if _COMMA_DECIMALS.fullmatch(value):
        value = value.replace(",", ".")
    try:
        return Money.parse({"value": value, "currency": currency}, allow_zero=zero)
    except InvalidRequestError:
        raise InvalidRequestError(_("Enter an amount such as 40.00.")) from None
