"""A throttling key service is asked only as often as it signs, and few calls fail."""

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from kms.signing_rate import (
    BURST_SECONDS,
    COUNTED_SECONDS,
    DECREASE,
    FORGET_SECONDS,
    LOWEST,
    SigningRateLimiter,
)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def admitted(pace: SigningRateLimiter, clock: Clock, *, each: float, seconds: float) -> int:
    """Calls that pass, out of evenly spaced ones, `each` a second."""
    passed = 0
    for _ in range(round(each * seconds)):
        clock.now += 1 / each
        try:
            pace.admit()
        except TemporarilyUnavailableError:
            continue
        passed += 1
    return passed


def throttled_at(clock: Clock, rate: int) -> SigningRateLimiter:
    """The pace after a backend throttled for a second and made `rate` signatures in it."""
    pace = SigningRateLimiter(clock)
    pace.record_throttling()
    for _ in range(rate):
        pace.record_signature()
    clock.now += 1
    pace.record_throttling()
    return pace


def test_who_was_never_refused_has_no_pace(clock: Clock) -> None:
    assert admitted(SigningRateLimiter(clock), clock, each=5_000, seconds=1) == 5_000


def test_KM_2_after_too_many_as_many_pass_as_were_signed(clock: Clock) -> None:
    pace = throttled_at(clock, 100)
    passed = admitted(pace, clock, each=500, seconds=10)
    assert 100 * 10 <= passed <= 100 * (10 + BURST_SECONDS) + 1


def test_many_refusals_of_one_moment_are_one(clock: Clock) -> None:
    pace = throttled_at(clock, 100)
    clock.now += 1
    for _ in range(50):
        pace.record_throttling()
    passed = admitted(pace, clock, each=500, seconds=10)
    assert 100 * DECREASE * 10 <= passed <= 100 * DECREASE * (10 + BURST_SECONDS) + 1


def test_who_is_refused_now_and_then_has_no_pace(clock: Clock) -> None:
    pace = SigningRateLimiter(clock)
    for _ in range(10):
        pace.record_throttling()
        clock.now += COUNTED_SECONDS + 0.1
    assert admitted(pace, clock, each=500, seconds=1) == 500


def test_it_grows_as_the_home_signs(clock: Clock) -> None:
    pace = throttled_at(clock, 20)
    for _ in range(20):
        pace.record_signature()
    assert admitted(pace, clock, each=500, seconds=10) > 20.5 * 10


def test_one_call_a_second_always_passes(clock: Clock) -> None:
    pace = SigningRateLimiter(clock)
    for _ in range(50):
        pace.record_throttling()
        clock.now += 1
    assert admitted(pace, clock, each=100, seconds=10) >= 10 * LOWEST


def test_it_is_forgotten(clock: Clock) -> None:
    pace = throttled_at(clock, 10)
    clock.now += FORGET_SECONDS + 1
    assert admitted(pace, clock, each=500, seconds=1) == 500


def test_KM_2_KM_3_two_processes_share_100_a_second_with_few_refusals(
    clock: Clock,
) -> None:
    paces, asked, signed, tokens = (
        [SigningRateLimiter(clock), SigningRateLimiter(clock)],
        0,
        0,
        10.0,
    )
    for call in range(500 * 60):
        clock.now += 1 / 500
        # The backend's own limit: 100 signatures a second, ten at once.
        tokens = min(10.0, tokens + 100 / 500)
        pace = paces[call % 2]
        try:
            pace.admit()
        except TemporarilyUnavailableError:
            continue
        late = call >= 500 * 10
        asked += late
        if tokens >= 1:
            tokens -= 1
            signed += late
            pace.record_signature()
        else:
            pace.record_throttling()
    assert signed >= 80 * 50
    assert asked <= 1.2 * signed
