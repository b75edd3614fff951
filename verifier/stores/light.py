"""Decisions that touch nothing which must outlive Redis: judged from memory, made true by one script.

A call is light where neither it nor its grant counts anything exactly: no money, no uses, no name to be remembered under, nobody
who must be there. All else goes through the database (docs/adr/0013-what-redis-may-hold.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from django.utils import timezone

from agentauth.protocol.decision import Allow, Refuse, Snapshot, decide
from agentauth.protocol.envelope import EMPTY, Envelope, Ledger
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.limits import Limits, microseconds
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.values import per_call
from verifier.answers import allowed_again, allowed_body, refusal_body
from verifier.services.moment import CLOCK_SECONDS
from verifier.services.snapshots import Known
from verifier.stores import Permit, Recalled, Spent, StoreCall, check_in_time
from verifier.stores.entries import no_entry, yes_entry, yes_frame
from verifier.stores.entry_macs import mac_of
from verifier.stores.redelivery import AGAIN_US, mark_of
from verifier.stores.scripts import (
    MAX_STREAM,
    Code,
    Reply,
    count_key,
    epoch_key,
    events_key,
    place_of,
    proof_key,
)

# Redis' clock may differ so much from the time of a call (s): as a clock may from the database's, which may differ as much from
# the host's, and the call has waited. A script that is executed later than that does nothing.
_APART_SECONDS: Final = 2 * CLOCK_SECONDS + 2
APART_US: Final = _APART_SECONDS * 1_000_000
# So much longer Redis remembers, since it counts by its own clock: what is written while that is as far behind as it may be goes
# early by twice that much for who comes when it is as far ahead; and a second more.
EARLY_MS: Final = (2 * _APART_SECONDS + 1) * 1000
# The same for a proof, whose time has as much to spare as a clock may differ.
SLACK_MS: Final = EARLY_MS - CLOCK_SECONDS * 1000
_NOTHING_USED: Final = Ledger()
_UNSURE: Final = "The result of the first try is not known any more. Have the agent send a new proof."
# Of one token: so many actions that it is asked about again and again, without arguments, and so 2 kB each.
MOST_YESES: Final = 4
# What a script is called with: its shard, its keys, its arguments.
Called = tuple[int, tuple[bytes, ...], tuple[bytes | int, ...]]


def is_light(call: StoreCall, known: Known | None) -> bool:
    """Whether Redis alone may decide. `known` is None for a token we have no record of, or another one's record."""
    if known is None or known.refusal(call.now) is not None:
        return True
    named = call.operation_key is not None
    return known.terms.light and not named and not (call.action is not None and call.action.lasts)


def is_kept(call: StoreCall) -> bool:
    """Whether Redis keeps the answer for the very same call: a rehearsal spends no proof to keep it under."""
    return call.delivery is not None and not call.dry_run


@dataclass(frozen=True, slots=True)
class Yes:
    """What memory says to a call, and to each like it: the same token, the same action, the same knowledge, at any time.

    `claims` are the very object they were read into; `frame` is of the event, `body` of the answer.
    """

    claims: TokenClaims
    frame: bytes
    body: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class Plan:
    """A light call judged as far as memory goes, and what `judge.lua` is called with."""

    called: Called
    event_id: str
    verdict: Yes | Refuse


def plan(call: StoreCall, known: Known | None) -> Plan:
    """Steps 7 to 14 but the rate, which the script judges together with the proof."""
    verdict = _verdict(call, known)
    if isinstance(verdict, Yes):
        event_id, entry = yes_entry(call, verdict.frame)
        return Plan(
            _judging(call, known, b"yes", entry, (mac_of(entry), event_id.encode(), b"")), event_id, verdict
        )
    event_id, entry = no_entry(call, verdict, None if known is None else known.human_id)
    told = b"" if call.delivery is None else orjson.dumps(refusal_body(verdict))
    # A no that was told stays; a yes only as long as the token may act.
    outranks = b"1" if verdict.error == "invalid_token" else b""
    return Plan(_judging(call, known, b"no", entry, (mac_of(entry), told, outranks)), event_id, verdict)


def holding(call: StoreCall, known: Known | None) -> Called:
    """The call of `judge.lua` that spends the proof, and sets one use of the rate aside, for a durable decision.

    Raises TemporarilyUnavailableError where the call is too old.
    """
    return _judging(call, known, b"hold", b"", AGAIN_US)


def _judging(
    call: StoreCall, known: Known | None, mode: bytes, entry: bytes, more: tuple[bytes | int, ...]
) -> Called:
    """`more` is what follows the mark. Raises TemporarilyUnavailableError where the call is too old."""
    check_in_time(call)
    place = place_of(call.claims.grant_id)
    rate = None if known is None else known.terms.rate
    floor = None if known is None else call.tenure.floor_us(known.follows_at)
    now_us = microseconds(call.now)
    remembered_ms = (call.spent_until * 1_000_000 - now_us) // 1000 + SLACK_MS
    acts = call.action is not None
    keys = (
        place.epoch,
        proof_key(place.shard, call.proof_jkt, call.proof_jti),
        place.rate,
        place.events,
        place.count,
    )
    arguments = (
        call.tenure.epoch,
        0 if call.dry_run else remembered_ms,
        mode,
        now_us,
        0 if rate is None else rate.interval_us,
        0 if rate is None else rate.tolerance_us,
        0 if rate is None or floor is None else rate.used_up(floor),
        entry,
        MAX_STREAM,
        b"1" if acts and not call.dry_run else b"0",
        b"1" if acts else b"0",
        APART_US,
        EARLY_MS,
        mark_of(call.delivery) if call.delivery and is_kept(call) else b"",
        *more,
    )
    return place.shard, keys, arguments


def epoch_of(called: Called) -> int:
    """The epoch that a script was called for: its first argument, whichever script."""
    return int(called[2][0])


def giving_back(call: StoreCall, known: Known | None, spent: Spent) -> Called:
    """The call of `give_back.lua` that undoes what was set aside for this call."""
    place = place_of(call.claims.grant_id)
    rate = None if known is None else known.terms.rate
    arguments = (
        call.tenure.epoch,
        0 if rate is None else rate.interval_us,
        spent.reserved_us or 0,
        spent.tat_us or 0,
        # The script asks what time it is now; by the call's own time it would give back what has healed since.
        microseconds(timezone.now()),
    )
    return place.shard, (place.epoch, place.rate), arguments


def noting(shard: int, epoch: int, entry: bytes) -> Called:
    """The call of `note.lua` that records a no before the store."""
    keys = (epoch_key(shard), events_key(shard), count_key(shard))
    return shard, keys, (epoch, entry, MAX_STREAM, mac_of(entry))


def conclude(call: StoreCall, known: Known | None, made: Plan, reply: Reply) -> Permit | Refuse | Recalled:
    """What the script made of the plan. Raises TemporarilyUnavailableError where it made nothing of it."""
    check_reply(reply)
    if reply.code is Code.AGAIN:
        return _again(call, known, made, reply.kept)
    if reply.code is Code.REPLAYED:
        return Refuse("invalid_dpop_proof", "replayed")
    if isinstance(made.verdict, Refuse):
        return made.verdict
    if reply.code is Code.RATE:
        return _too_fast(reply.wait_us)
    answer = _yes_body(call, known, made.verdict.body, made.event_id, reply.tat_us, microseconds(call.now))
    return Permit(answer, repeated=False)


def _again(call: StoreCall, known: Known | None, made: Plan, kept: bytes) -> Recalled:
    if kept[:1] != b"a":
        return refused_again(kept)
    at_us, tat_us, _, event_id = _read_kept(kept)
    verdict = made.verdict
    if isinstance(verdict, Refuse) and known is not None:
        # The window has closed since: the yes was good when it was told.
        verdict = _judged(call, known, EMPTY)
    if isinstance(verdict, Refuse):
        raise TypeError("this version of the grant covered the action before")
    tat = int(tat_us) if tat_us else None
    return Recalled(_yes_body(call, known, verdict.body, event_id.decode(), tat, int(at_us)))


def refused_again(kept: bytes) -> Recalled:
    """The no that the very same call was told. Raises TemporarilyUnavailableError where it was told yes."""
    _, _, wait_us, told = _read_kept(kept)
    if kept[:1] == b"v":
        return Recalled(orjson.loads(told))
    if kept[:1] == b"l":
        return Recalled(refusal_body(_too_fast(int(wait_us))))
    raise TemporarilyUnavailableError(_UNSURE)


def _read_kept(kept: bytes) -> list[bytes]:
    """Of an answer under its proof: the time, `tat after`, `wait`, what was told. A letter comes before."""
    return kept[1:].split(b" ", 3)


def _too_fast(wait_us: int) -> Refuse:
    return Refuse("envelope_exceeded", "rate", -(-wait_us // 1_000_000))


def _yes_body(
    call: StoreCall,
    known: Known | None,
    body: Mapping[str, Any],
    event_id: str,
    tat_us: int | None,
    at_us: int,
) -> dict[str, Any]:
    """Of a yes at `at_us`. The rate is all that a light call's grant counts."""
    if known is None:
        raise TypeError("nothing was known that could be allowed")
    rate = known.terms.rate
    return allowed_again(
        body,
        Limits(None if rate is None else rate.remaining(tat_us, at_us)),
        decision_id=event_id,
        expires_in=call.claims.expires_at - at_us // 1_000_000,
    )


def held(reply: Reply) -> Spent:
    """What became of a hold. Raises TemporarilyUnavailableError."""
    unsure = None
    try:
        check_reply(reply)
    except TemporarilyUnavailableError as error:
        if reply.code is not Code.UNSURE:
            raise
        unsure = error
    return Spent(
        first=reply.code not in {Code.REPLAYED, Code.UNSURE},
        elsewhere=True,
        tat_us=reply.before_us,
        reserved_us=None if reply.tat_us == reply.before_us else reply.tat_us,
        unsure=unsure,
    )


def check_reply(reply: Reply) -> None:
    """Raises TemporarilyUnavailableError where the epoch is over, no more events fit, or an earlier try may have passed."""
    if reply.code is Code.LOST:
        raise TemporarilyUnavailableError("The memory of spent proofs is moving. Try again shortly.")
    if reply.code is Code.FULL:
        raise TemporarilyUnavailableError("More decisions wait for the log than may. Try again shortly.")
    if reply.code is Code.UNSURE:
        raise TemporarilyUnavailableError(_UNSURE)


def _verdict(call: StoreCall, known: Known | None) -> Yes | Refuse:
    if known is None:
        return Refuse("invalid_token", "unknown")
    refusal = known.refusal(call.now)
    keeps = not call.dry_run and (call.action is None or not call.action.arguments)
    kept = known.yeses.get(call.action) if refusal is None and keeps else None
    if kept is not None and kept.claims is call.claims:
        return cast("Yes", kept)
    yes = _judged(call, known, known.terms.unrated, refusal)
    # Without windows time says nothing more to it; the rate is the script's.
    if isinstance(yes, Yes) and known.terms.unrated.allowed_time_windows is None and keeps:
        if len(known.yeses) >= MOST_YESES and call.action not in known.yeses:
            del known.yeses[next(iter(known.yeses))]
        known.yeses[call.action] = yes
    return yes


def _judged(call: StoreCall, known: Known, envelope: Envelope, refusal: str | None = None) -> Yes | Refuse:
    snapshot = Snapshot(
        refusal=refusal,
        capabilities=known.terms.capabilities,
        envelope=envelope,
        operation=None,
        confirmation="none",
        human_online=False,
    )
    outcome = decide(call, snapshot, _NOTHING_USED)
    if isinstance(outcome, Refuse):
        return outcome
    if not isinstance(outcome, Allow):
        raise TypeError("a light call asks no human and repeats nothing")
    body = allowed_body(
        outcome.capability,
        Limits(),
        decision_id="",
        agent=known.agent,
        claims=call.claims,
        now_seconds=0,
    )
    return Yes(call.claims, yes_frame(call, known.human_id, outcome.capability), body)
