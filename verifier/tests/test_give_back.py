"""A call decided in the database first reserves a use of its rate in Redis.

The use is given back if the call is refused, repeats an earlier one, or is not decided.
"""

import random

import pytest

from agentauth.protocol.usage_counters import Rate
from verifier.stores import redis_keys
from verifier.stores.lua_scripts import Code, Reply
from verifier.tests.script_stage import GRANT, NOW, RATE, SHARD, Stage

pytestmark = pytest.mark.redis


def test_a_hold_reserves_a_use_of_the_rate_and_writes_no_event(stage: Stage) -> None:
    held = stage.judge(mode="hold", jti="one")
    assert (held.code, held.tat_us, held.before_us) == (Code.OK, NOW + RATE.interval_us, None)
    assert stage.judge(mode="hold", jti="one").code is Code.REPLAYED
    again = stage.judge(mode="hold")
    assert (again.before_us, again.tat_us) == (held.tat_us, NOW + 2 * RATE.interval_us)
    stage.judge(mode="hold")
    assert stage.judge(mode="hold").code is Code.RATE
    assert stage.events() == []
    assert stage.client.get(redis_keys.count_key(SHARD)) is None


def test_what_is_given_back_can_be_used_again(stage: Stage) -> None:
    for _ in range(RATE.burst - 1):
        stage.judge()
    before = stage.tat()
    held = stage.judge(mode="hold")
    assert stage.judge().code is Code.RATE
    given = stage.give_back(held, now=NOW + 1)
    assert (given.code, given.tat_us, given.before_us) == (Code.OK, before, held.tat_us)
    assert stage.tat() == before
    assert stage.judge().code is Code.OK


def test_a_first_use_given_back_leaves_the_whole_burst(stage: Stage) -> None:
    held = stage.judge(mode="hold")
    stage.give_back(held, now=NOW + 20)
    codes = [stage.judge(now=NOW + 20).code for _ in range(RATE.burst + 1)]
    assert codes == [*[Code.OK] * RATE.burst, Code.RATE]


def test_idle_or_forgotten_rate_gets_nothing_back(stage: Stage) -> None:
    held = stage.judge(mode="hold")
    later = NOW + 3 * RATE.interval_us + 17
    stage.judge(now=later)
    assert stage.give_back(held, now=later + 1).tat_us == later + RATE.interval_us == stage.tat()
    stage.client.delete(redis_keys.rate_key(SHARD, GRANT))
    given = stage.give_back(held)
    assert (given.code, given.tat_us, given.before_us) == (Code.OK, None, None)
    assert stage.tat() is None


@pytest.mark.parametrize("seed", range(20))
def test_EN_1_giving_back_never_lets_more_pass_than_the_rate(seed: int, stage: Stage) -> None:
    rng = random.Random(seed)
    rate = Rate(per_minute=rng.choice([7, 60, 600]), burst=rng.choice([1, 2, 5, 9]))
    now, kept, returned = NOW, [], False
    holds: list[Reply] = []
    for _ in range(120):
        now += (
            int(rng.expovariate(1.3) * rate.interval_us)
            if rng.random() < 0.5
            else rng.randint(0, 3000)
        )
        if holds and rng.random() < 0.4:
            given = stage.give_back(holds.pop(rng.randrange(len(holds))), now=now, rate=rate)
            returned |= given.tat_us != given.before_us
            continue
        hold = rng.random() < 0.5
        reply = stage.judge(now=now, rate=rate, mode="hold" if hold else "yes")
        if reply.code is Code.OK and hold:
            holds.append(reply)
        elif reply.code is Code.OK:
            kept.append(now)
    assert kept
    assert returned
    # The kept uses must fit the rate as if nothing had ever been reserved.
    tat: int | None = None
    for at in kept:
        assert rate.wait_us(tat, at) <= 0
        tat = rate.advance(tat, at)


def test_hold_from_before_an_idle_time_gets_nothing_back(stage: Stage) -> None:
    first, second = stage.judge(mode="hold"), stage.judge(mode="hold")
    stage.give_back(first, now=NOW + 1)
    # With the first use given back, the rate is idle by now, although the second hold's own TAT
    # still lies in the future.
    later = NOW + 1 + RATE.interval_us + 5
    tat = stage.judge(now=later).tat_us
    assert tat == later + RATE.interval_us
    assert stage.give_back(second, now=later + 1).tat_us == tat
