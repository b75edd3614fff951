"""Turns choices on the approval page into capabilities, envelope and end; lists the changes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from django.utils.translation import gettext as _

from agentauth.protocol.behavioural_envelope import (
    Budget,
    Envelope,
    narrows_envelope,
    parse_envelope,
)
from agentauth.protocol.capability import Capability, narrows
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from approvals import sentences
from approvals.services.offered_capabilities import offer, whole
from registry.models import Grant
from registry.services.grants import latest_end

DAY = timedelta(days=1)
_COMMA_DECIMALS = re.compile(r"[0-9]+,[0-9]{1,2}")
_NAMES = re.compile(r"(permission|amount|budget)\.[0-9]{1,2}|rate|uses|confirm|daily|days|reason")
_MAX_CHOICES = 128
_UNREADABLE = (
    "`choices` must name fields of the approval page, each with a text of at most 500 characters."
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What would be granted: the signed part of an approval."""

    capabilities: tuple[Capability, ...]
    envelope: Envelope
    valid_until: datetime

    @property
    def dangerous(self) -> tuple[Capability, ...]:
        """The capabilities that need the second step."""
        return tuple(each for each in self.capabilities if each.type in sentences.DANGEROUS)


def asked_terms(grant: Grant, now: datetime) -> Terms:
    """What the agent requests; for a grant that is signed again, what it had."""
    return Terms(
        capabilities=whole(grant),
        envelope=parse_envelope(
            grant.requested_envelope if grant.envelope is None else grant.envelope
        ),
        valid_until=latest_end(grant, now),
    )


def offered_terms(grant: Grant, now: datetime) -> Terms:
    """What may be approved of it: what manifest and allow-list cover now, possibly nothing."""
    return replace(asked_terms(grant, now), capabilities=offer(grant).capabilities)


def whole_days(until: datetime, now: datetime) -> int:
    """Days that "Valid for" shows: rounded up, so that not changing it keeps the whole life."""
    return max(1, -((now - until) // DAY))


def currency_of(terms: Terms) -> str | None:
    """The one currency of a grant, if it moves money at all."""
    return next((each.max_amount.currency for each in terms.capabilities if each.max_amount), None)


def read_choices(choices: object) -> dict[str, str]:
    """The posted choices: an object of known names and short texts. Raises InvalidRequestError."""
    if not isinstance(choices, dict) or len(choices) > _MAX_CHOICES:
        raise InvalidRequestError(_UNREADABLE)
    for name, value in choices.items():
        if not _NAMES.fullmatch(str(name)) or not isinstance(value, str) or len(value) > 500:  # noqa: PLR2004 — the reason's length
            raise InvalidRequestError(_UNREADABLE)
    return choices


def chosen_terms(grant: Grant, choices: Mapping[str, str], *, zone: str, now: datetime) -> Terms:
    """Apply the choices to what is offered, never widening it (docs/protocol.md section 6).

    A permission whose name is not in `choices` is off; an absent or blank limit stays as requested.
    `zone` is where a new daily budget counts its days. Raises InvalidRequestError for widened or
    unreadable terms.
    """
    asked = offered_terms(grant, now)
    capabilities = tuple(
        _lower_amount(each, choices.get(f"amount.{index}", ""))
        for index, each in enumerate(asked.capabilities)
        if f"permission.{index}" in choices
    )
    if not capabilities:
        raise InvalidRequestError("Leave at least one permission on, or deny the request.")
    terms = Terms(
        capabilities=capabilities,
        envelope=_envelope(asked, choices, zone),
        valid_until=_end(asked.valid_until, choices.get("days", ""), now),
    )
    # The page can only lower, but a forged request may ask for more.
    if not narrows(terms.capabilities, asked.capabilities):
        raise InvalidRequestError(
            "You can only narrow the request: an amount is above what the agent asked for."
        )
    if not narrows_envelope(terms.envelope, asked.envelope):
        raise InvalidRequestError(
            "You can only lower the limits: one is above what the agent asked for."
        )
    return terms


def changes(asked: Terms, chosen: Terms, *, at: str, now: datetime) -> list[str]:
    """What the human changed at the service named `at`: sentences with old and new value."""
    lines = []
    kept = {
        (each.type, each.resource, each.namespace, each.name): each for each in chosen.capabilities
    }
    for each in asked.capabilities:
        mine = kept.get((each.type, each.resource, each.namespace, each.name))
        if mine is None:
            lines.append(_("Off: %(what)s") % {"what": sentences.permission(each, at)})
        elif each.max_amount and mine.max_amount and mine.max_amount != each.max_amount:
            lines.append(_arrow(_("Maximum amount"), each.max_amount, mine.max_amount))
    lines += _limit_changes(asked.envelope, chosen.envelope)
    before, after = whole_days(asked.valid_until, now), whole_days(chosen.valid_until, now)
    if after != before:
        lines.append(_arrow(_("Valid for, in days"), before, after))
    return lines


def _limit_changes(asked: Envelope, chosen: Envelope) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        (_("Requests per minute"), asked.max_requests_per_minute, chosen.max_requests_per_minute),
        (_("Uses in all"), asked.max_uses, chosen.max_uses),
        (_("Ask me above"), asked.confirm_above, chosen.confirm_above),
    ]
    before = {budget.key: budget.ceiling for budget in asked.budgets}
    pairs += [(_("Budget"), before.get(budget.key), budget.ceiling) for budget in chosen.budgets]
    return [_arrow(name, old, new) for name, old, new in pairs if old != new]


def _arrow(name: str, old: object, new: object) -> str:
    return f"{name}: {_text_of(old)} → {_text_of(new)}"


def _text_of(value: object) -> str:
    if isinstance(value, Money):
        return sentences.money(value)
    return _("no limit") if value is None else str(value)


def _lower_amount(capability: Capability, amount: str) -> Capability:
    if not amount.strip() or capability.max_amount is None:
        return capability
    return replace(
        capability,
        max_amount=read_money(amount, capability.max_amount.currency, _("Maximum amount")),
    )


def _envelope(asked: Terms, choices: Mapping[str, str], zone: str) -> Envelope:
    envelope = asked.envelope
    currency = currency_of(asked)
    rate = _whole(choices, "rate", _("Requests per minute"))
    uses = _whole(choices, "uses", _("Uses in all"))
    budgets = tuple(
        replace(budget, ceiling=read_money(text, budget.ceiling.currency, _("Budget")))
        if (text := choices.get(f"budget.{index}", "")).strip()
        else budget
        for index, budget in enumerate(envelope.budgets)
    )
    if currency and choices.get("daily", "").strip():
        ceiling = read_money(choices["daily"], currency, _("Daily budget"))
        budgets += (Budget(ceiling, "day", zone),)
    threshold = envelope.confirm_above
    if currency and choices.get("confirm", "").strip():
        threshold = read_money(choices["confirm"], currency, _("Ask me above"), zero=True)
    burst = envelope.max_burst
    if rate is not None and burst is not None:
        burst = min(
            burst, rate
        )  # a burst above the rate is invalid, so lowering the rate lowers both
    return replace(
        envelope,
        max_requests_per_minute=envelope.max_requests_per_minute if rate is None else rate,
        max_burst=burst,
        max_uses=envelope.max_uses if uses is None else uses,
        budgets=budgets,
        confirm_above=threshold,
    )


def _end(latest: datetime, days: str, now: datetime) -> datetime:
    if not days.strip():
        return latest
    count = _number(days, _("Valid for"))
    if count > whole_days(latest, now):
        raise InvalidRequestError("“Valid for” can only be shorter than what the agent asked for.")
    return min(latest, (now + count * DAY).replace(microsecond=0))


def _whole(choices: Mapping[str, str], name: str, label: str) -> int | None:
    text = choices.get(name, "")
    return _number(text, label) if text.strip() else None


def _number(text: str, label: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text.strip()):
        raise InvalidRequestError(f"{label}: enter a whole number above zero.")
    return int(text)


def read_money(text: str, currency: str, label: str, *, zero: bool = False) -> Money:
    """An amount as people type it: "40", "40.00", "40,00".

    Raises InvalidRequestError naming the field.
    """
    value = text.strip()
    if _COMMA_DECIMALS.fullmatch(value):
        value = value.replace(",", ".")
    try:
        return Money.parse({"value": value, "currency": currency}, allow_zero=zero)
    except InvalidRequestError:
        raise InvalidRequestError(f"{label}: enter an amount such as 40.00.") from None
