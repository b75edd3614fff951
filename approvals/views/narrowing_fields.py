"""The fields in which a person narrows a request on the approval page."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _

from agentauth.protocol.argument_constraint import Constraint
from agentauth.protocol.behavioural_envelope import Envelope, TimeWindow
from agentauth.protocol.capability import Capability
from approvals import sentences
from approvals.quotation_marks import quoted
from approvals.services.term_choices import Terms, currency_of, round_up_life
from approvals.services.term_field_parsing import MIDNIGHT, week_of
from approvals.views.grants_in_words import describe_kind, said_of
from registry.services.catalogues import Published, words_of

_LINE_BREAK = re.compile(r"[\r\n]")


@dataclass(frozen=True, slots=True)
class Box:
    """A checkbox of a set: what it posts, its label and whether it is ticked at first."""

    value: str
    label: str
    on: bool = True


@dataclass(frozen=True, slots=True)
class NarrowingField:
    """A labelled field. `kind` is amount, number, text, time, life or set (of `boxes`)."""

    name: str
    label: str
    kind: str
    value: str = ""
    unit: str = ""
    hint: str = ""
    placeholder: str = ""
    most: int | None = None
    boxes: Sequence[Box] = ()

    @property
    def id(self) -> str:
        return self.name.replace(".", "-")


@dataclass(frozen=True, slots=True)
class PermissionFields:
    """A permission on the page: its place, a short title, its risk and what can be narrowed."""

    place: int
    title: str
    risk: str
    fields: Sequence[NarrowingField] = field(default_factory=list)
    # People lower amounts most often, so their fields are open at first.
    opened: bool = False
    # The service's words about it, with the exact identifiers; None if there are none.
    said: Mapping[str, Any] | None = None


def permission_fields(terms: Terms, published: Published | None = None) -> list[PermissionFields]:
    """What can be narrowed of each permission, with the service's words from its catalogue."""
    words = words_of(published)
    return [
        PermissionFields(
            place=place,
            title=describe_kind(each),
            risk=sentences.risk(each, words),
            said=said_of(each, published),
            fields=[*_capability_fields(place, each)],
            opened=each.max_amount is not None,
        )
        for place, each in enumerate(terms.capabilities)
    ]


def _capability_fields(place: int, each: Capability) -> Iterator[NarrowingField]:
    if each.max_amount is not None:
        yield NarrowingField(
            f"amount.{place}",
            _("Maximum amount"),
            "amount",
            value=sentences.typed_amount(each.max_amount),
            unit=_("%(currency)s per payment") % {"currency": each.max_amount.currency},
        )
    yield NarrowingField(
        f"resource.{place}",
        _("Only below %(resource)s") % {"resource": quoted(f"{each.resource}/")},
        "text",
        placeholder=_("all of it"),
    )
    for number, constraint in enumerate(each.constraints):
        found = _constraint_field(f"{place}.{number}", constraint)
        if found is not None:
            yield found


def _constraint_field(suffix: str, each: Constraint) -> NarrowingField | None:
    value = str(each.values[0])
    # A browser drops line breaks from such a field, so its value would seem changed.
    value = "" if _LINE_BREAK.search(value) else value
    argument = {"argument": each.argument}
    match each.operator:
        case "in" if len(each.values) > 1:
            boxes = [
                Box(str(place), sentences.value_words(value))
                for place, value in enumerate(each.values)
            ]
            return NarrowingField(f"only.{suffix}", each.argument, "set", boxes=boxes)
        case "not_in" if not isinstance(each.values[0], bool):
            label = _("%(argument)s is also not") % argument
            return NarrowingField(f"limit.{suffix}", label, "text")
        case "min":
            label = _("%(argument)s is at least") % argument
        case "max":
            label = _("%(argument)s is at most") % argument
        case "prefix":
            label = _("%(argument)s begins with") % argument
        case "max_length":
            label, unit = _("%(argument)s has at most") % argument, _("characters")
            return NarrowingField(f"limit.{suffix}", label, "text", value=value, unit=unit)
        case _:
            return None
    return NarrowingField(f"limit.{suffix}", label, "text", value=value)


def limit_fields(terms: Terms, now: datetime) -> list[NarrowingField]:
    """The fields of the envelope and of the grant's life."""
    return [
        *_money_fields(terms),
        *_count_fields(terms.envelope),
        NarrowingField(
            "days",
            _("Valid for"),
            "life",
            value=str(round_up_life(terms.valid_until, now)),
        ),
    ]


def _money_fields(terms: Terms) -> Iterator[NarrowingField]:
    envelope, currency = terms.envelope, currency_of(terms)
    labels = sentences.budget_names()
    for index, budget in enumerate(envelope.budgets):
        yield NarrowingField(
            f"budget.{index}",
            labels[budget.period],
            "amount",
            value=sentences.typed_amount(budget.ceiling),
            unit=budget.ceiling.currency,
            hint=_("Counted in %(zone)s time.") % {"zone": budget.zone},
        )
    if currency is None:
        return
    none = _("no limit")
    for name, period in (("daily", "day"), ("total", "total")):
        if not any(budget.period == period for budget in envelope.budgets):
            yield NarrowingField(name, labels[period], "amount", unit=currency, placeholder=none)
    yield NarrowingField(
        "confirm",
        _("Ask me above"),
        "amount",
        value=sentences.typed_amount(envelope.confirm_above) if envelope.confirm_above else "",
        unit=currency,
        placeholder=_("never ask"),
    )


def _count_fields(envelope: Envelope) -> Iterator[NarrowingField]:
    counts = [
        ("rate", _("Requests per minute"), envelope.max_requests_per_minute, True),
        ("burst", _("Requests at once"), envelope.max_burst, False),
        ("uses", _("Uses in all"), envelope.max_uses, True),
        ("token", _("Access token life in seconds"), envelope.max_session_seconds, False),
    ]
    for name, label, most, may_be_added in counts:
        if most is not None or may_be_added:
            yield NarrowingField(
                name,
                label,
                "number",
                value="" if most is None else str(most),
                placeholder=_("no limit"),
                most=most,
            )


@dataclass(frozen=True, slots=True)
class Hours:
    """The fields of one window of the week."""

    zone: str
    days: NarrowingField
    start: NarrowingField
    end: NarrowingField


def hour_fields(envelope: Envelope, zone: str) -> list[Hours]:
    """One set of fields for each window; for every hour of the week if there is no window."""
    windows = envelope.allowed_time_windows or (week_of(zone),)
    return [_hours(index, window) for index, window in enumerate(windows)]


def _hours(index: int, window: TimeWindow) -> Hours:
    names = sentences.weekdays()
    return Hours(
        zone=window.zone,
        days=NarrowingField(
            f"week.{index}",
            _("Days"),
            "set",
            boxes=[Box(day, names[day]) for day in window.days],
        ),
        start=NarrowingField(f"from.{index}", _("From"), "time", value=_clock(window.start)),
        end=NarrowingField(f"to.{index}", _("To"), "time", value=_clock(window.end)),
    )


def _clock(minutes: int) -> str:
    """A time as the browser's field has it, which cannot show 24:00."""
    minutes %= MIDNIGHT
    return f"{minutes // 60:02d}:{minutes % 60:02d}"
