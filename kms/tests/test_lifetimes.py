"""What a key may do at each moment of its life, from its times alone."""

from datetime import UTC, datetime, timedelta

import pytest

from kms.lifetimes import PUBLISHED_BEFORE_USE, TOKEN_OVERLAP, lifetimes
from kms.models import Key

NOW = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
TICK = timedelta(microseconds=1)


def _key(
    kid: str, state: str, active_from: datetime, purpose: str = "token", **times: datetime
) -> Key:
    return Key(kid=kid, purpose=purpose, state=state, active_from=active_from, **times)


def _states(keys: list[Key], now: datetime) -> dict[str, tuple[str, bool]]:
    return {life.key.kid: (life.state, life.verifies(now)) for life in lifetimes(keys, now=now)}


def test_the_promises_of_the_contract_hold_with_room() -> None:
    assert timedelta(seconds=120) <= PUBLISHED_BEFORE_USE
    assert timedelta(seconds=900) <= TOKEN_OVERLAP


@pytest.mark.parametrize(
    ("now", "old", "new"),
    [
        (NOW - TICK, ("active", True), ("next", True)),
        (NOW, ("retired", True), ("active", True)),
        (NOW + TOKEN_OVERLAP - TICK, ("retired", True), ("active", True)),
        (NOW + TOKEN_OVERLAP, ("retired", False), ("active", True)),
    ],
)
def test_the_switch_happens_by_the_clock_whether_or_not_a_job_recorded_it(
    now: datetime, old: tuple[str, bool], new: tuple[str, bool]
) -> None:
    unrecorded = [_key("old", "active", NOW - timedelta(days=9)), _key("new", "next", NOW)]
    assert _states(unrecorded, now) == {"old": old, "new": new}
    recorded = [
        _key(
            "old",
            "retired",
            NOW - timedelta(days=9),
            retired_at=NOW,
            needed_until=NOW + TOKEN_OVERLAP,
        ),
        _key("new", "active", NOW),
    ]
    if now >= NOW:
        assert _states(recorded, now) == {"old": old, "new": new}


@pytest.mark.parametrize("purpose", ["receipt", "audit"])
def test_evidence_is_verifiable_for_ever(purpose: str) -> None:
    keys = [
        _key("old", "active", NOW - timedelta(days=9), purpose=purpose),
        _key("new", "next", NOW, purpose=purpose),
    ]
    assert _states(keys, NOW + timedelta(days=36500))["old"] == ("retired", True)


def test_a_disabled_key_verifies_nothing_at_any_time() -> None:
    key = _key("old", "disabled", NOW - timedelta(days=1), needed_until=NOW + timedelta(days=1))
    assert _states([key], NOW) == {"old": ("disabled", False)}
