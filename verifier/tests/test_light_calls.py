"""The arguments of the Redis scripts for a light call, and how their replies become answers."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from agentauth.protocol.capability import Action
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.usage_counters import Rate, microseconds
from verifier.answers import refusal_body
from verifier.stores import ProviderKey, SpendResult, StoreCall, StoredAnswer
from verifier.stores.lua_scripts import Code, Reply
from verifier.stores.redis_decisions import (
    SLACK_MS,
    conclude,
    epoch_of,
    give_back_call,
    hold_call,
    is_light,
    plan_light_decision,
    read_hold,
    recall_refusal,
)
from verifier.tests.test_kept_yes import NOW, READ, WRITE, call, known
from verifier.tests.test_kept_yes import _in_time as _in_time  # noqa: PLC0414 — a fixture

NAMES = (
    "epoch",
    "ttl",
    "mode",
    "now",
    "interval",
    "tolerance",
    "floor",
    "entry",
    "bound",
    "counts",
    "acts",
)
MARK_AT = 13
DAYS = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
UNRATED = {
    "allowed_time_windows": [{"days": DAYS, "start": "09:00", "end": "12:30", "zone": "UTC"}]
}
DELETE = Action("delete", "calendar")
RATE = Rate(per_minute=60, burst=10)
DELIVERY = ProviderKey(b"d" * 32, b"b" * 32)


def arguments(asked: StoreCall, grant: Any) -> Mapping[str, Any]:
    _, _, given = plan_light_decision(asked, grant).called
    return dict(zip(NAMES, given, strict=False)) | {"mark": given[MARK_AT]}


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("rated", [True, False])
def test_script_is_given_the_rate_of_the_grant_and_where_it_begins(epoch: int, rated: bool) -> None:
    grant = known() if rated else known(envelope=UNRATED)
    asked = call(grant)
    asked = replace(asked, replay_epoch=replace(asked.replay_epoch, number=epoch))
    given = arguments(asked, grant)
    floor = RATE.used_up(microseconds(NOW)) if epoch > 1 else 0
    expected = (RATE.interval_us, RATE.tolerance_us, floor) if rated else (0, 0, 0)
    assert (given["interval"], given["tolerance"], given["floor"]) == expected
    assert epoch_of(hold_call(asked, grant)) == given["epoch"] == epoch
    unknown = arguments(asked, None)
    assert (unknown["mode"], unknown["interval"], unknown["tolerance"], unknown["floor"]) == (
        b"no",
        0,
        0,
        0,
    )


@pytest.mark.parametrize(
    ("dry_run", "provider_key"), [(False, None), (False, DELIVERY), (True, None)]
)
@pytest.mark.parametrize("action", [None, READ, WRITE])
def test_rehearsal_spends_counts_and_keeps_nothing(
    action: Any, dry_run: bool, provider_key: Any
) -> None:
    grant = known()
    given = arguments(
        replace(call(grant), action=action, dry_run=dry_run, provider_key=provider_key), grant
    )
    # The proof stays valid for an hour, and the call came 0.25 s after a full second.
    assert given["ttl"] == (0 if dry_run else 3_599_750 + SLACK_MS)
    assert given["acts"] == (b"0" if action is None else b"1")
    assert given["counts"] == (b"1" if action is not None and not dry_run else b"0")
    assert bool(given["mark"]) is (provider_key is not None)


def test_rate_wait_is_rounded_up_to_full_seconds() -> None:
    grant = known()
    asked = call(grant)
    made = plan_light_decision(asked, grant)
    for wait_us, seconds in ((1, 1), (2_000_000, 2), (2_000_001, 3)):
        told = conclude(asked, grant, made, Reply(Code.RATE, None, wait_us, 1, None))
        assert told == Refuse("envelope_exceeded", "rate", seconds)


@pytest.mark.parametrize("rated", [True, False])
def test_what_is_given_back_is_what_was_set_aside(
    rated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    later = NOW + timedelta(seconds=3)
    monkeypatch.setattr("verifier.stores.redis_decisions.timezone.now", lambda: later)
    grant = known() if rated else known(envelope=UNRATED)
    interval = RATE.interval_us if rated else 0
    for spent, told in (
        (SpendResult(first=True, tat_us=7, reserved_us=9), (9, 7)),
        (SpendResult(first=True), (0, 0)),
    ):
        _, _, given = give_back_call(call(grant), grant, spent)
        assert given == (1, interval, *told, microseconds(later))
    _, _, given = give_back_call(call(grant), None, SpendResult(first=True))
    assert given == (1, 0, 0, 0, microseconds(later))


@pytest.mark.parametrize(
    ("envelope", "more", "light"),
    [
        (None, {}, True),
        (None, {"action": None}, True),
        (None, {"action": DELETE}, False),
        (None, {"operation_key": "k"}, False),
        (None, {"action": None, "operation_key": "k"}, False),
        ({"max_uses": 3}, {}, False),
        ({"max_uses": 3}, {"action": None}, False),
    ],
)
def test_call_is_light_where_nothing_of_it_must_outlive_redis(
    envelope: Mapping[str, Any] | None, more: Any, light: bool
) -> None:
    grant = known(envelope=envelope)
    assert is_light(replace(call(grant), **more), grant) is light
    # A refusal changes nothing that must outlive Redis.
    refused = known(envelope=envelope, token_revoked_at=NOW)
    assert is_light(replace(call(refused), **more), refused)
    assert is_light(replace(call(grant), **more), None)


def test_named_refusal_is_kept_and_outranks_a_yes_for_an_ended_token() -> None:
    grant, revoked = known(), known(token_revoked_at=NOW)
    for each, reason, outranks in ((grant, "no_capability", b""), (revoked, "revoked", b"1")):
        asked = replace(call(each), action=WRITE)
        for provider_key in (None, DELIVERY):
            *_, kept, said = plan_light_decision(
                replace(asked, provider_key=provider_key), each
            ).called[2]
            assert said == outranks
            assert isinstance(kept, bytes)
            assert json.loads(kept or b"{}").get("reason") == (reason if provider_key else None)


def again(kept: bytes) -> Reply:
    return Reply(Code.AGAIN, None, 0, 0, None, kept)


@pytest.mark.parametrize("later", [timedelta(seconds=30), timedelta(minutes=45)])
def test_repeated_call_gets_the_yes_of_its_own_moment(later: timedelta) -> None:
    """Even after its time window has closed."""
    for grant, tat, left in (
        (known(), b"%d" % (microseconds(NOW) + 5_000_000), 5),
        (known(envelope=UNRATED), b"", None),
    ):
        asked = replace(call(grant), now=NOW + later, provider_key=DELIVERY)
        told = conclude(
            asked,
            grant,
            plan_light_decision(asked, grant),
            again(b"a%d %s 0 the-id" % (microseconds(NOW), tat)),
        )
        assert isinstance(told, StoredAnswer)
        assert (told.body["valid"], told.body["decision_id"]) == (True, "the-id")
        assert told.body["expires_in"] == asked.claims.expires_at - int(NOW.timestamp())
        assert told.body["limits"]["rate_remaining"] == left


def test_repeated_call_gets_its_own_no() -> None:
    grant = known()
    asked = replace(call(grant), provider_key=DELIVERY)
    for kept, told in (
        (b'v7  0 {"reason":"two words"}', {"reason": "two words"}),
        (b"l7 9 2000001 the-id", refusal_body(Refuse("envelope_exceeded", "rate", 3))),
    ):
        assert (
            conclude(asked, grant, plan_light_decision(asked, grant), again(kept))
            == recall_refusal(kept)
            == StoredAnswer(told)
        )
    # This call went to the database then and does now, so only the database can repeat its yes.
    with pytest.raises(TemporarilyUnavailableError):
        recall_refusal(b"a7 9 0 the-id")


def test_call_that_redis_did_not_judge_is_not_allowed() -> None:
    grant = known()
    asked = call(grant)
    for code in (Code.LOST, Code.FULL, Code.UNSURE):
        with pytest.raises(TemporarilyUnavailableError):
            conclude(asked, grant, plan_light_decision(asked, grant), Reply(code, None, 0, 0, None))
    told = conclude(
        asked, grant, plan_light_decision(asked, grant), Reply(Code.REPLAYED, None, 0, 1, None)
    )
    assert told == Refuse("invalid_dpop_proof", "replayed")


def test_hold_says_whether_the_proof_is_new_and_what_was_set_aside() -> None:
    assert read_hold(Reply(Code.OK, 9, 0, 0, 7)) == SpendResult(
        first=True, elsewhere=True, tat_us=7, reserved_us=9
    )
    assert read_hold(Reply(Code.OK, None, 0, 0, None)) == SpendResult(first=True, elsewhere=True)
    # The database judges the rate again, and computes how long to wait.
    assert read_hold(Reply(Code.RATE, 7, 3, 0, 7)) == SpendResult(
        first=True, elsewhere=True, tat_us=7
    )
    assert read_hold(Reply(Code.REPLAYED, None, 0, 0, None)) == SpendResult(
        first=False, elsewhere=True
    )
    unsure = read_hold(Reply(Code.UNSURE, None, 0, 0, None))
    assert (unsure.first, isinstance(unsure.unsure, TemporarilyUnavailableError)) == (False, True)
    for code in (Code.LOST, Code.FULL):
        with pytest.raises(TemporarilyUnavailableError):
            read_hold(Reply(code, None, 0, 0, None))
