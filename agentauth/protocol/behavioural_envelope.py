"""The behavioural envelope of a grant: its grammar, when one is narrower than another, and its pure
enforcement.

Wall time is in `hours_and_periods.py`, the arithmetic of counters in `usage_counters.py`; the
verifier stores the ledger.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from functools import lru_cache
from typing import Final, Literal

from .capability import Action, Capability
from .errors import InvalidRequestError
from .fast_dataclass import per_call
from .hours_and_periods import TimeWindow, next_opening, parse_window, seconds_until, windows_narrow
from .json_fields import integer, items, members
from .money import Money
from .usage_counters import (
    Budget,
    BudgetLeft,
    Ledger,
    Limits,
    Rate,
    budget_wait,
    debit,
    microseconds,
    parse_budget,
)

__all__ = [
    "DEFAULT_MAXIMA",
    "EMPTY",
    "Budget",
    "BudgetLeft",
    "Confirmation",
    "Envelope",
    "EnvelopeAllowed",
    "EnvelopeRefused",
    "Ledger",
    "Limits",
    "Maxima",
    "Outcome",
    "StepUp",
    "TimeWindow",
    "enforce",
    "limits_left",
    "narrows_envelope",
    "needs_confirmation",
    "parse_envelope",
    "single_currency",
]

Confirmation = Literal["none", "confirmed", "denied"]


@dataclass(frozen=True, slots=True)
class Maxima:
    """The largest values and longest lists that a registry accepts in an envelope; shown in
    discovery.
    """

    # 100 a second per grant. Above that, the interval between two uses (10 ms) approaches the clock
    # skew between servers.
    max_requests_per_minute: int = 6_000
    max_burst: int = 6_000
    allowed_time_windows: int = 16
    budgets: int = 8
    # Allowed uses in the life of the grant. Only bounds the integer: at 100 a second, 116 days.
    max_uses: int = 1_000_000_000
    # A token is valid for at most 900 s anyway, so larger values have no effect. One day only
    # bounds the integer.
    max_session_seconds: int = 86_400

    def to_json(self) -> dict[str, int]:
        """Each member's maximum by its name; for lists, their length."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


DEFAULT_MAXIMA: Final = Maxima()


@dataclass(frozen=True, slots=True)
class Envelope:
    """Behavioural limits of a grant (docs/protocol.md section 3). None means no such limit.

    `max_burst` None counts as 1. An empty tuple of windows means never; `parse_envelope` refuses
    one, so only an Envelope built in code has it.
    """

    max_requests_per_minute: int | None = None
    max_burst: int | None = None
    allowed_time_windows: tuple[TimeWindow, ...] | None = None
    confirm_above: Money | None = None
    budgets: tuple[Budget, ...] = ()
    max_uses: int | None = None
    requires_human_online: bool = False
    max_session_seconds: int | None = None

    @property
    def rate(self) -> Rate | None:
        """The rate limit with its default burst of 1, or None."""
        return (
            None
            if self.max_requests_per_minute is None
            else _rate(self.max_requests_per_minute, self.burst)
        )

    @property
    def burst(self) -> int:
        """The effective burst: 1 if absent."""
        return 1 if self.max_burst is None else self.max_burst

    def to_json(self) -> dict[str, object]:
        """The wire form, without the members that limit nothing."""
        body: dict[str, object] = {}
        for name in ("max_requests_per_minute", "max_burst", "max_uses", "max_session_seconds"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if self.allowed_time_windows is not None:
            body["allowed_time_windows"] = [
                window.to_json() for window in self.allowed_time_windows
            ]
        if self.confirm_above is not None:
            body["confirm_above"] = self.confirm_above.to_json()
        if self.budgets:
            body["budgets"] = [budget.to_json() for budget in self.budgets]
        if self.requires_human_online:
            body["requires_human_online"] = True
        return body


# Cached: each call needs it several times.
_rate = lru_cache(maxsize=4_096)(Rate)
EMPTY: Final = Envelope()
_MEMBERS: Final = tuple(each.name for each in fields(Envelope))


def parse_envelope(
    obj: object, where: str = "envelope", *, maxima: Maxima = DEFAULT_MAXIMA
) -> Envelope:
    """Read an envelope; every member is optional (docs/protocol.md section 3).

    Raises InvalidRequestError naming the member. Null is refused, not read as "no limit": its
    sender may have lost a value. So is an empty list, which could mean never or always.
    """
    body = members(obj, where, optional=_MEMBERS)
    counts = {
        name: integer(body[name], f"{where}.{name}", minimum=1, maximum=getattr(maxima, name))
        for name in ("max_requests_per_minute", "max_burst", "max_uses", "max_session_seconds")
        if name in body
    }
    if "max_burst" in counts:
        _check_burst(counts["max_burst"], counts.get("max_requests_per_minute"), where)
    # Only JSON true and false: 1 or "true" is not a deliberate decision.
    online = body.get("requires_human_online", False)
    if not isinstance(online, bool):
        raise InvalidRequestError(f"{where}.requires_human_online: must be true or false.")
    confirm = body.get("confirm_above")
    return Envelope(
        allowed_time_windows=_parse_windows(body, where, maxima),
        confirm_above=Money.parse(confirm, f"{where}.confirm_above", allow_zero=True)
        if "confirm_above" in body
        else None,
        budgets=_parse_budgets(body, where, maxima),
        requires_human_online=online,
        **counts,
    )


def _check_burst(burst: int, rate: int | None, where: str) -> None:
    if rate is None:
        raise InvalidRequestError(f"{where}.max_burst: requires max_requests_per_minute.")
    # At most `rate + burst - 1` uses fit into a minute: with a larger burst, at least twice the
    # displayed rate.
    if burst > rate:
        raise InvalidRequestError(f"{where}.max_burst: must not be above max_requests_per_minute.")


def _parse_windows(
    body: Mapping[str, object], where: str, maxima: Maxima
) -> tuple[TimeWindow, ...] | None:
    # Keep absent and empty apart: absent is any time, empty would be never.
    if "allowed_time_windows" not in body:
        return None
    place = f"{where}.allowed_time_windows"
    entries = items(body["allowed_time_windows"], place, maximum=maxima.allowed_time_windows)
    return tuple(parse_window(entry, f"{place}[{index}]") for index, entry in enumerate(entries))


def _parse_budgets(body: Mapping[str, object], where: str, maxima: Maxima) -> tuple[Budget, ...]:
    if "budgets" not in body:
        return ()
    place = f"{where}.budgets"
    entries = items(body["budgets"], place, maximum=maxima.budgets)
    budgets = tuple(parse_budget(entry, f"{place}[{index}]") for index, entry in enumerate(entries))
    # With two ceilings for one counter, one would mislead the person who reads them.
    if len({budget.key for budget in budgets}) != len(budgets):
        raise InvalidRequestError(
            f"{place}: has two budgets of the same currency, period and zone."
        )
    return budgets


def single_currency(
    capabilities: Iterable[Capability], envelope: Envelope, where: str = "envelope"
) -> str | None:
    """The only currency of a grant, or None if it names no money.

    Raises InvalidRequestError for two: a sum over two currencies means nothing.
    """
    # Include the threshold and the budgets: a limit in another currency would never bind.
    amounts = [each.max_amount for each in capabilities]
    amounts += [envelope.confirm_above, *(budget.ceiling for budget in envelope.budgets)]
    currencies = sorted({amount.currency for amount in amounts if amount is not None})
    if len(currencies) > 1:
        raise InvalidRequestError(
            f"{where}: a grant must use one currency, but this one has {' and '.join(currencies)}."
        )
    return currencies[0] if currencies else None


def _at_most(new: int | None, old: int | None) -> bool:
    """Is `new` as tight as `old`, where None is no limit?"""
    return old is None or (new is not None and new <= old)


def narrows_envelope(new: Envelope, old: Envelope) -> bool:
    """Does `new` allow no sequence of actions that `old` refuses?

    Never raises; reflexive and transitive. May say no to an envelope that is in fact narrower,
    never yes to a wider one (docs/protocol.md section 3).
    """
    # The burst matters only with a rate: if the old envelope has none, any burst is narrower.
    rate = _at_most(new.max_requests_per_minute, old.max_requests_per_minute) and (
        old.max_requests_per_minute is None or new.burst <= old.burst
    )
    windows = old.allowed_time_windows is None or (
        new.allowed_time_windows is not None
        and windows_narrow(new.allowed_time_windows, old.allowed_time_windows)
    )
    threshold = old.confirm_above is None or (
        new.confirm_above is not None and new.confirm_above.within(old.confirm_above)
    )
    return (
        rate
        and windows
        and threshold
        and all(
            any(_tightens_budget(after, before) for after in new.budgets) for before in old.budgets
        )
        and _at_most(new.max_uses, old.max_uses)
        and new.requires_human_online >= old.requires_human_online
        and _at_most(new.max_session_seconds, old.max_session_seconds)
    )


def _tightens_budget(new: Budget, old: Budget) -> bool:
    # Only a budget of the same currency, period and zone, at most as high: a person who compares
    # the two lists must see that it is tighter.
    return new.key == old.key and new.ceiling.within(old.ceiling)


@per_call(frozen=True, slots=True)
class EnvelopeAllowed:
    """The envelope allows this use: store `ledger`. `limits` is what is left after it."""

    ledger: Ledger
    limits: Limits


@per_call(frozen=True, slots=True)
class EnvelopeRefused:
    """The envelope refuses this use.

    `error` and `reason` are those of docs/protocol.md section 8. `retry_after` is in seconds; None
    if waiting does not help.
    """

    error: str
    reason: str | None
    retry_after: int | None = None


@dataclass(frozen=True, slots=True)
class StepUp:
    """All other checks pass, but a human must first confirm this one transaction."""


Outcome = EnvelopeAllowed | EnvelopeRefused | StepUp


def limits_left(envelope: Envelope, ledger: Ledger, now: datetime) -> Limits:
    """What is left of each counted limit at the aware instant `now`."""
    budgets = []
    for budget in envelope.budgets:
        # If more is spent than a lowered ceiling allows, 0 is left.
        left = Money(
            max(budget.ceiling.minor - ledger.used_minor(budget, now), 0), budget.ceiling.currency
        )
        budgets.append(BudgetLeft(left.currency, budget.period, left.value))
    rate = envelope.rate
    return Limits(
        rate_remaining=None if rate is None else rate.remaining(ledger.tat_us, microseconds(now)),
        budgets=tuple(budgets),
        uses_remaining=None
        if envelope.max_uses is None
        else max(envelope.max_uses - ledger.uses, 0),
    )


def enforce(
    envelope: Envelope,
    ledger: Ledger,
    *,
    action: Action | None,
    now: datetime,
    human_online: bool,
    confirmation: Confirmation,
) -> Outcome:
    """Decide whether one use of a grant stays inside its envelope; the pure part of
    docs/protocol.md section 8.

    `now` is aware, to the microsecond. `confirmation` is what the human decided: "confirmed" for
    exactly this action, "denied" for its idempotency key. The given ledger is never changed: only
    an EnvelopeAllowed has a new one, so a refusal or a dry run counts nothing. Without an action,
    only windows and presence are checked and nothing is counted.

    1. Windows. 2. Presence. 3. Threshold. 4. Rate. 5. Budgets and uses. 6. Debit.
    """
    # 1. First: outside its hours a grant does not exist, so nothing else about it is revealed.
    windows = envelope.allowed_time_windows
    if windows is not None and not any(window.is_open(now) for window in windows):
        opening = next_opening(windows, now)
        return EnvelopeRefused(
            "outside_time_window", None, None if opening is None else seconds_until(opening, now)
        )
    # 2. The presence lease is the only proof that the human is online. The caller has checked that
    # it has not expired.
    if envelope.requires_human_online and not human_online:
        return EnvelopeRefused("step_up_required", "human_offline")
    if action is None:
        return EnvelopeAllowed(ledger, limits_left(envelope, ledger, now))
    # 3. A denial is final for its idempotency key: it refuses every action above the threshold. A
    # missing confirmation waits until 4 and 5 have passed.
    above = needs_confirmation(envelope, action)
    if above and confirmation == "denied":
        return EnvelopeRefused("step_up_required", "confirmation_denied")
    # 4. and 5. Check the counters before asking a human, who would otherwise confirm a payment that
    # is then refused.
    refusal = _counted_refusal(envelope, ledger, action.amount, now)
    if refusal is not None:
        return refusal
    if above and confirmation != "confirmed":
        return StepUp()
    # 6. Only here is anything counted.
    return _allow_and_debit(envelope, ledger, action.amount, now)


def needs_confirmation(envelope: Envelope, action: Action | None) -> bool:
    """Whether a human must confirm this action, because its amount is above the threshold.

    An amount in another currency counts as above: what cannot be compared must not pass.
    """
    if envelope.confirm_above is None or action is None or action.amount is None:
        return False
    return not action.amount.within(envelope.confirm_above)


def _counted_refusal(
    envelope: Envelope, ledger: Ledger, amount: Money | None, now: datetime
) -> EnvelopeRefused | None:
    # Rate first: its wait is usually the shortest, so the agent retries soonest.
    rate = envelope.rate
    if rate is not None and (wait := rate.wait_us(ledger.tat_us, microseconds(now))) > 0:
        return EnvelopeRefused("envelope_exceeded", "rate", -(-wait // 1_000_000))
    if amount is not None:
        fits, seconds = budget_wait(envelope.budgets, amount, ledger, now)
        if not fits:
            return EnvelopeRefused("envelope_exceeded", "budget", seconds)
    if envelope.max_uses is not None and ledger.uses >= envelope.max_uses:
        return EnvelopeRefused("envelope_exceeded", "max_uses")
    return None


def _allow_and_debit(
    envelope: Envelope, ledger: Ledger, amount: Money | None, now: datetime
) -> EnvelopeAllowed:
    rate = envelope.rate
    after = Ledger(
        # Keep the arrival time if there is no rate now: a later version of the grant may have one
        # again, and must not start with a full burst.
        tat_us=ledger.tat_us if rate is None else rate.advance(ledger.tat_us, microseconds(now)),
        uses=ledger.uses + 1,
        spent=ledger.spent if amount is None else debit(envelope.budgets, amount, ledger, now),
        # What the agent's other grants at this service provider have spent.
        beside=ledger.beside,
    )
    return EnvelopeAllowed(after, limits_left(envelope, after, now))
