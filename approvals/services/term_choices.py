"""Turns choices on the approval page into capabilities, envelope and end; lists the changes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from django.utils.translation import gettext as _

from agentauth.protocol.behavioural_envelope import Envelope, narrows_envelope, parse_envelope
from agentauth.protocol.capability import Capability
from agentauth.protocol.capability_comparison import narrows
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.money import Money
from approvals import sentences
from approvals.services.offered_capabilities import asked_capabilities, current_offer
from approvals.services.term_field_parsing import (
    Fields,
    InvalidChoicesError,
    narrow_capability,
    narrow_envelope,
    read_number,
)
from registry.models import Grant
from registry.refusal_translation import refusal_text
from registry.services.grants import latest_end

DAY, HOUR = timedelta(days=1), timedelta(hours=1)
_NAMES = re.compile(
    r"(permission|amount|resource|budget|week|from|to)\.[0-9]{1,2}|(only|limit)\.[0-9]{1,2}\.[0-9]{1,2}"
    r"|rate|burst|uses|token|confirm|daily|total|present|days|unit|reason"
)
_OF_PERMISSION = frozenset({"amount", "resource", "only", "limit"})
_NO_LIMITS = frozenset({"permission", "unit", "reason"})
# Enough for 32 permissions with a few constraints each. The page posts the changed fields, the
# life, and every permission that is on.
_MAX_CHOICES = 512
_UNREADABLE = (
    "`choices` must name fields of the approval page, each with a text of at most 500 characters."
)


@dataclass(frozen=True, slots=True)
class Terms:
    """What would be granted: the signed part of an approval."""

    capabilities: tuple[Capability, ...]
    envelope: Envelope
    valid_until: datetime
    # For each capability its index in the offered terms; empty if all offered ones are chosen.
    offered_indexes: tuple[int, ...] = field(default=(), compare=False)

    @property
    def dangerous(self) -> tuple[Capability, ...]:
        """The capabilities that need the second step."""
        return tuple(each for each in self.capabilities if each.type in sentences.DANGEROUS)


def asked_terms(grant: Grant, now: datetime) -> Terms:
    """What the agent requests; for a grant that is signed again, its capabilities and limits.

    A renewal starts the requested life again.
    """
    return Terms(
        capabilities=asked_capabilities(grant),
        envelope=parse_envelope(
            grant.requested_envelope if grant.envelope is None else grant.envelope
        ),
        valid_until=latest_end(grant, now),
    )


def offered_terms(grant: Grant, now: datetime) -> Terms:
    """The part of `asked_terms` that manifest and allow-list cover now, possibly nothing."""
    return replace(asked_terms(grant, now), capabilities=current_offer(grant).capabilities)


def round_up_life(until: datetime, now: datetime, unit: timedelta = DAY) -> int:
    """The remaining life in `unit`, at least 1: rounded up, so an unchanged field keeps it all."""
    return max(1, -((now - until) // unit))


def currency_of(terms: Terms) -> str | None:
    """The grant's currency; None if it moves no money."""
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
    asked, fields = offered_terms(grant, now), Fields(choices)
    indexes = tuple(
        index for index in range(len(asked.capabilities)) if f"permission.{index}" in choices
    )
    if not indexes:
        raise InvalidRequestError("Leave at least one permission on, or deny the request.")
    terms = Terms(
        capabilities=tuple(
            narrow_capability(fields, index, asked.capabilities[index]) for index in indexes
        ),
        envelope=narrow_envelope(fields, asked.envelope, currency_of(asked), zone),
        valid_until=_end(fields, asked.valid_until, now, after=_current_end(grant, now)),
        offered_indexes=indexes,
    )
    _refuse_others(fields, indexes)
    if fields.wrong:
        raise InvalidChoicesError(fields.wrong)
    # Each field was checked; what is signed is checked as a whole too.
    if not narrows(terms.capabilities, asked.capabilities) or not narrows_envelope(
        terms.envelope, asked.envelope
    ):
        raise InvalidRequestError("You can only narrow what the agent asked for.")
    return terms


def _current_end(grant: Grant, now: datetime) -> datetime | None:
    """The grant's current end if it waits for a renewal, else None."""
    return grant.valid_until if grant.waits_for_renewal(now) else None


def _refuse_others(fields: Fields, indexes: tuple[int, ...]) -> None:
    """Report fields that match no term: the person would believe that a limit was set.

    Fields of a permission that is off are ignored, because the page shows that it is off.
    """
    for name in fields.choices:
        kind, _dot, rest = name.partition(".")
        off = kind in _OF_PERMISSION and int(rest.partition(".")[0]) not in indexes
        if name not in fields.known and kind not in _NO_LIMITS and not off:
            fields.wrong[name] = _("The request has no such limit. Reload the page.")


def changes(asked: Terms, chosen: Terms, *, at: str, now: datetime) -> list[str]:
    """What the human changed at the service named `at`: sentences with old and new value."""
    indexes = chosen.offered_indexes or range(len(chosen.capabilities))
    kept = dict(zip(indexes, chosen.capabilities, strict=True))
    lines: list[str] = []
    for index, each in enumerate(asked.capabilities):
        mine = kept.get(index)
        if mine is None:
            lines.append(_("Off: %(what)s") % {"what": sentences.permission(each, at)})
        else:
            lines += _permission_changes(each, mine)
    lines += _limit_changes(asked.envelope, chosen.envelope)
    before, after = round_up_life(asked.valid_until, now), round_up_life(chosen.valid_until, now)
    if chosen.valid_until != asked.valid_until and before == after:
        before, after = (round_up_life(each.valid_until, now, HOUR) for each in (asked, chosen))
        lines.append(_arrow(_("Valid for, in hours"), before, after))
    elif after != before:
        lines.append(_arrow(_("Valid for, in days"), before, after))
    return lines


def _permission_changes(asked: Capability, mine: Capability) -> list[str]:
    lines = []
    if mine.resource != asked.resource:
        lines.append(f"“{asked.resource}” → “{mine.resource}”")
    if mine.max_amount != asked.max_amount:
        lines.append(_arrow(_("Maximum amount"), asked.max_amount, mine.max_amount))
    lines += [
        f"{sentences.constraint(old)} → {sentences.constraint(new)}"
        for old, new in zip(asked.constraints, mine.constraints, strict=True)
        if old != new
    ]
    return lines


def _limit_changes(asked: Envelope, chosen: Envelope) -> list[str]:
    pairs: list[tuple[str, object, object]] = [
        (_("Requests per minute"), asked.max_requests_per_minute, chosen.max_requests_per_minute),
        (_("Requests at once"), asked.max_burst, chosen.max_burst),
        (_("Uses in all"), asked.max_uses, chosen.max_uses),
        (_("Access token life in seconds"), asked.max_session_seconds, chosen.max_session_seconds),
        (_("Ask me above"), asked.confirm_above, chosen.confirm_above),
    ]
    before = {budget.key: budget.ceiling for budget in asked.budgets}
    names = sentences.budget_names()
    pairs += [
        (names[budget.period], before.get(budget.key), budget.ceiling) for budget in chosen.budgets
    ]
    lines = [_arrow(name, old, new) for name, old, new in pairs if old != new]
    if chosen.allowed_time_windows != asked.allowed_time_windows:
        windows = map(sentences.window_words, chosen.allowed_time_windows or ())
        lines.append(_("Only at these times: %(windows)s.") % {"windows": "; ".join(windows)})
    if chosen.requires_human_online != asked.requires_human_online:
        lines.append(_("Only while the agent’s owner has “I'm here” switched on."))
    return lines


def _arrow(name: str, old: object, new: object) -> str:
    return f"{name}: {_text_of(old)} → {_text_of(new)}"


def _text_of(value: object) -> str:
    if isinstance(value, Money):
        return sentences.money(value)
    return _("no limit") if value is None else str(value)


def _end(fields: Fields, latest: datetime, now: datetime, *, after: datetime | None) -> datetime:
    unit = HOUR if fields.choices.get("unit") == "hours" else DAY
    if not fields.has("days"):
        return latest
    try:
        count = read_number(fields.choices["days"])
    except InvalidRequestError as error:
        fields.wrong["days"] = refusal_text(error)
        return latest
    if count > round_up_life(latest, now, unit):
        fields.wrong["days"] = _("This can only be shorter than what the agent asked for.")
        return latest
    end = min(latest, (now + count * unit).replace(microsecond=0))
    if after is not None and end <= after:
        fields.wrong["days"] = _(
            "A renewal must end later than the grant does. To end the grant earlier, revoke it."
        )
        return latest
    return end
