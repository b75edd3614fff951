"""Light decisions: decided from memory and carried out by one Redis script.

A call is light if neither it nor its grant counts anything exactly: no money, no uses, no
`idempotency_key` of the agent, no required human presence. All others go through the database
(docs/adr/0013-what-redis-may-hold.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import orjson
from django.utils import timezone

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope, Ledger
from agentauth.protocol.decision_rules import Allow, Refuse, Snapshot, decide
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.usage_counters import Limits, microseconds
from verifier.answers import allowed_again, allowed_body, refusal_body
from verifier.services.cached_token import CachedToken
from verifier.services.clock_readings import CLOCK_SKEW_SECONDS
from verifier.stores import (
    EarlyRefusal,
    Permit,
    SpendResult,
    StoreCall,
    StoredAnswer,
    check_in_time,
)
from verifier.stores.lua_scripts import MAX_STREAM, Code, Reply
from verifier.stores.redis_keys import count_key, epoch_key, events_key, keys_of, proof_key
from verifier.stores.stored_answers import AGAIN_US, mark_of
from verifier.stores.stream_entry_encoding import (
    encode_entry,
    format_fields,
    no_entry,
    shared_members,
)
from verifier.stores.stream_entry_macs import mac_of

# How far (s) the clock of Redis may be from the time of a call; beyond it, the script does nothing.
# CLOCK_SKEW_SECONDS each for the clocks of Redis and of the host against the database's, and 2 s
# for the wait of the call.
_APART_SECONDS: Final = 2 * CLOCK_SKEW_SECONDS + 2
APART_US: Final = _APART_SECONDS * 1_000_000
# How much longer (ms) Redis keeps a key, because it expires keys by its own clock. A key that was
# written while that clock was _APART_SECONDS behind and is read while it is as far ahead would
# expire 2 × _APART_SECONDS early. One second is spare.
EARLY_MS: Final = (2 * _APART_SECONDS + 1) * 1000
# The same for a spent proof, whose lifetime already allows for CLOCK_SKEW_SECONDS.
SLACK_MS: Final = EARLY_MS - CLOCK_SKEW_SECONDS * 1000
_NOTHING_USED: Final = Ledger()
_UNSURE: Final = "The result of the first try is no longer known. Have the agent send a new proof."
# How many actions per token are cached as allowed. Actions with arguments are not, so each takes at
# most 2 kB.
MOST_YESES: Final = 4
# A script call: shard, keys and arguments.
ScriptCall = tuple[int, tuple[bytes, ...], tuple[bytes | int, ...]]


def is_light(call: StoreCall, known: CachedToken | None) -> bool:
    """Whether Redis alone may decide. `known` is None for a token without a fitting record."""
    if known is None or known.refusal(call.now) is not None:
        return True
    named = call.operation_key is not None
    durable = call.action is not None and call.action.needs_durable_decision
    return known.terms.light and not named and not durable


@dataclass(frozen=True, slots=True)
class AllowTemplate:
    """The answer to every call with the same token, action and known state, at any time.

    `claims` is the very object it was decided for; `frame` is the event's part, `fields` more of
    the event's entry, `body` the response's part.
    """

    claims: TokenClaims
    frame: bytes
    fields: tuple[bytes | int, ...]
    body: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class LightDecision:
    """A light call, decided as far as memory allows, and the arguments of `judge.lua`."""

    called: ScriptCall
    event_id: str
    verdict: AllowTemplate | Refuse


def plan_light_decision(call: StoreCall, known: CachedToken | None) -> LightDecision:
    """Steps 7 to 14 without the rate, which the script checks together with the proof."""
    verdict = _verdict(call, known)
    if isinstance(verdict, AllowTemplate):
        event_id, entry = encode_entry(call, verdict.frame)
        more = (mac_of(entry), event_id.encode(), b"", *verdict.fields)
        return LightDecision(
            _judge_call(call, known, b"yes", entry, more),
            event_id,
            verdict,
        )
    event_id, entry = no_entry(call, verdict, None if known is None else known.human_id)
    told = b"" if call.provider_key is None else orjson.dumps(refusal_body(verdict))
    # A kept refusal stays. A kept yes is outranked once the token may not act.
    outranks = b"1" if verdict.error == "invalid_token" else b""
    more = (mac_of(entry), told, outranks, *format_fields(call))
    return LightDecision(_judge_call(call, known, b"no", entry, more), event_id, verdict)


def hold_call(call: StoreCall, known: CachedToken | None) -> ScriptCall:
    """The call of `judge.lua` that spends the proof and reserves a use for a durable decision.

    Raises TemporarilyUnavailableError if the call is too old.
    """
    return _judge_call(call, known, b"hold", b"", AGAIN_US)


def _judge_call(
    call: StoreCall,
    known: CachedToken | None,
    mode: bytes,
    entry: bytes,
    more: tuple[bytes | int, ...],
) -> ScriptCall:
    """`more`: arguments after the mark.

    Raises TemporarilyUnavailableError if the call is too old.
    """
    check_in_time(call)
    place = keys_of(call.claims.grant_id)
    rate = None if known is None else known.terms.rate
    floor = None if known is None else call.replay_epoch.floor_us(known.follows_at)
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
        call.replay_epoch.number,
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
        mark_of(call.provider_key) if call.provider_key else b"",
        *more,
    )
    return place.shard, keys, arguments


def epoch_of(called: ScriptCall) -> int:
    """The epoch of a script call: the first argument of every script."""
    return int(called[2][0])


def give_back_call(call: StoreCall, known: CachedToken | None, spent: SpendResult) -> ScriptCall:
    """The call of `give_back.lua` that returns the use reserved for this call."""
    place = keys_of(call.claims.grant_id)
    rate = None if known is None else known.terms.rate
    arguments = (
        call.replay_epoch.number,
        0 if rate is None else rate.interval_us,
        spent.reserved_us or 0,
        spent.tat_us or 0,
        # Now: with the call's own time, part of what other calls used since would be returned too.
        microseconds(timezone.now()),
    )
    return place.shard, (place.epoch, place.rate), arguments


def note_call(shard: int, epoch: int, refusal: EarlyRefusal) -> ScriptCall:
    """The call of `note.lua` that records a refusal made before the store."""
    _, entry = no_entry(refusal, refusal.refuse, None)
    keys = (epoch_key(shard), events_key(shard), count_key(shard))
    more = (mac_of(entry), *format_fields(refusal))
    return shard, keys, (epoch, entry, MAX_STREAM, *more)


def conclude(
    call: StoreCall, known: CachedToken | None, made: LightDecision, reply: Reply
) -> Permit | Refuse | StoredAnswer:
    """The outcome of the plan. Raises TemporarilyUnavailableError if the script did nothing."""
    check_reply(reply)
    if reply.code is Code.AGAIN:
        return _again(call, known, made, reply.kept)
    if reply.code is Code.REPLAYED:
        return Refuse("invalid_dpop_proof", "replayed")
    if isinstance(made.verdict, Refuse):
        return made.verdict
    if reply.code is Code.RATE:
        return _too_fast(reply.wait_us)
    answer = _yes_body(
        call, known, made.verdict.body, made.event_id, reply.tat_us, microseconds(call.now)
    )
    return Permit(answer, repeated=False)


def _again(
    call: StoreCall, known: CachedToken | None, made: LightDecision, kept: bytes
) -> StoredAnswer:
    if kept[:1] != b"a":
        return recall_refusal(kept)
    at_us, tat_us, _, event_id = _read_kept(kept)
    verdict = made.verdict
    if isinstance(verdict, Refuse) and known is not None:
        # A time window has closed since. The yes was right when it was given.
        verdict = _judge_from_memory(call, known, EMPTY)
    if isinstance(verdict, Refuse):
        raise TypeError("this version of the grant covered the action before")
    tat = int(tat_us) if tat_us else None
    return StoredAnswer(_yes_body(call, known, verdict.body, event_id.decode(), tat, int(at_us)))


def recall_refusal(kept: bytes) -> StoredAnswer:
    """The kept refusal of the same call. Raises TemporarilyUnavailableError if it was allowed."""
    _, _, wait_us, told = _read_kept(kept)
    if kept[:1] == b"v":
        return StoredAnswer(orjson.loads(told))
    if kept[:1] == b"l":
        return StoredAnswer(refusal_body(_too_fast(int(wait_us))))
    raise TemporarilyUnavailableError(_UNSURE)


def _read_kept(kept: bytes) -> list[bytes]:
    """Split a kept answer after its letter: the time, `tat after`, `wait`, and id or body."""
    return kept[1:].split(b" ", 3)


def _too_fast(wait_us: int) -> Refuse:
    return Refuse("envelope_exceeded", "rate", -(-wait_us // 1_000_000))


def _yes_body(
    call: StoreCall,
    known: CachedToken | None,
    body: Mapping[str, Any],
    event_id: str,
    tat_us: int | None,
    at_us: int,
) -> dict[str, Any]:
    """The body of a yes given at `at_us`. The rate is the only counter of a light call's grant."""
    if known is None:
        raise TypeError("nothing was known that could be allowed")
    rate = known.terms.rate
    return allowed_again(
        body,
        Limits(None if rate is None else rate.remaining(tat_us, at_us)),
        decision_id=event_id,
        expires_in=call.claims.expires_at - at_us // 1_000_000,
    )


def read_hold(reply: Reply) -> SpendResult:
    """Read the answer to a hold. Raises TemporarilyUnavailableError."""
    unsure = None
    try:
        check_reply(reply)
    except TemporarilyUnavailableError as error:
        if reply.code is not Code.UNSURE:
            raise
        unsure = error
    return SpendResult(
        first=reply.code not in {Code.REPLAYED, Code.UNSURE},
        elsewhere=True,
        tat_us=reply.before_us,
        reserved_us=None if reply.tat_us == reply.before_us else reply.tat_us,
        unsure=unsure,
    )


def check_reply(reply: Reply) -> None:
    """Raise TemporarilyUnavailableError for LOST, FULL and UNSURE."""
    if reply.code is Code.LOST:
        raise TemporarilyUnavailableError("The replay cache is moving. Try again shortly.")
    if reply.code is Code.FULL:
        raise TemporarilyUnavailableError(
            "Too many decisions are waiting for the log. Try again shortly."
        )
    if reply.code is Code.UNSURE:
        raise TemporarilyUnavailableError(_UNSURE)


def _verdict(call: StoreCall, known: CachedToken | None) -> AllowTemplate | Refuse:
    if known is None:
        return Refuse("invalid_token", "unknown")
    refusal = known.refusal(call.now)
    keeps = not call.dry_run and (call.action is None or not call.action.arguments)
    kept = known.yeses.get(call.action) if refusal is None and keeps else None
    if kept is not None and kept.claims is call.claims:
        return cast("AllowTemplate", kept)
    yes = _judge_from_memory(call, known, known.terms.unrated, refusal)
    # Without time windows the answer does not depend on the time; the script checks the rate.
    if (
        isinstance(yes, AllowTemplate)
        and known.terms.unrated.allowed_time_windows is None
        and keeps
    ):
        if len(known.yeses) >= MOST_YESES and call.action not in known.yeses:
            del known.yeses[next(iter(known.yeses))]
        known.yeses[call.action] = yes
    return yes


def _judge_from_memory(
    call: StoreCall, known: CachedToken, envelope: Envelope, refusal: str | None = None
) -> AllowTemplate | Refuse:
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
    frame = shared_members(call, known.human_id, outcome.capability)
    return AllowTemplate(call.claims, frame, format_fields(call), body)
