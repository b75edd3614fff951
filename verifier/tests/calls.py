"""Calls to the Redis scripts from tests, on their own event loop, and their expected failures."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.time_limits import within
from verifier.services import replay_cache_lease
from verifier.services.batch_fairness import ALONE
from verifier.services.clock_readings import ClockReading
from verifier.services.freshness import DecisionBasis
from verifier.services.web_verification import WebProcess, run_to_end
from verifier.stores import StoreCall, lua_scripts, redis_keys
from verifier.stores.database_decisions import Outcome
from verifier.stores.lua_scripts import Code, Reply, read_reply
from verifier.stores.redis_servers import RedisAwayError, Servers
from verifier.verification import judge

T = TypeVar("T")
NOW = 1_764_118_000_000_000
# Longer than any deadline, and much shorter than a hanging call.
SLACK_SECONDS = 2.0
QUICK = 0.05


def on_loop(url: str, work: Callable[[Servers], Awaitable[T]], **given: Any) -> T:
    """Run `work` on a new event loop with its own connections, and return its result."""

    async def main() -> T:
        servers = Servers(url, **given)
        try:
            return await work(servers)
        finally:
            servers.close()

    return asyncio.run(main())


def decided(call: StoreCall) -> Outcome:
    """Decide a prepared call as the web process does."""
    web, basis = (
        WebProcess(call.now),
        DecisionBasis(ClockReading.now(), replay_cache_lease.LEASE.current()),
    )
    return run_to_end(judge(web, call, basis, ALONE, lambda: None))


def judge_arguments(
    grant: uuid.UUID, *, interval: int = 1_000_000, jti: str = ""
) -> tuple[int, list[bytes], list[bytes | str | int]]:
    """Return shard, keys and arguments of a use of a grant.

    Its rate is one use per `interval` µs with a huge burst, so the first use is answered
    NOW + interval, which tells calls apart.
    """
    shard = redis_keys.shard_of(grant)
    keys = [
        redis_keys.epoch_key(shard),
        redis_keys.proof_key(shard, "jkt", jti or str(uuid.uuid4())),
        redis_keys.rate_key(shard, grant),
        redis_keys.events_key(shard),
        redis_keys.count_key(shard),
    ]
    return (
        shard,
        keys,
        [
            1,
            125_000,
            "yes",
            NOW,
            interval,
            10**15,
            0,
            b"{}",
            10**6,
            1,
            1,
            10**15,
            25_000,
            b"",
            b"mac",
            b"",
            b"",
        ],
    )


async def use(
    servers: Servers,
    grant: uuid.UUID,
    *,
    jti: str = "",
    interval: int = 1_000_000,
    deadline: float = 5,
) -> Reply:
    shard, keys, args = judge_arguments(grant, interval=interval, jti=jti)
    return read_reply(
        await servers.evaluate(lua_scripts.JUDGE, shard, keys, args, deadline=deadline)
    )


async def mark(servers: Servers, epoch: int) -> None:
    """Begin `epoch` in every shard."""
    calls = [
        servers.evaluate(
            lua_scripts.MARK,
            shard,
            [redis_keys.epoch_key(shard), redis_keys.count_key(shard)],
            [epoch],
            deadline=5,
        )
        for shard in range(redis_keys.SHARDS)
    ]
    assert {read_reply(raw).code for raw in await asyncio.gather(*calls)} == {Code.OK}


async def begin(servers: Servers) -> None:
    """Mark epoch 1, with retries for a minute because the machine may be busy."""
    until = time.monotonic() + 60
    while True:
        try:
            return await mark(servers, 1)
        except RedisAwayError:
            if time.monotonic() > until:
                raise


async def assert_call_fails(call: Awaitable[Any]) -> RedisAwayError:
    """Assert that the call fails in time, and return its error."""
    began = time.monotonic()
    with pytest.raises(RedisAwayError) as refused:
        await call
    assert time.monotonic() - began < within(SLACK_SECONDS)
    return refused.value


async def refusal(servers: Servers) -> RedisAwayError:
    """Make a call, assert that it fails in time, and return its error."""
    return await assert_call_fails(use(servers, uuid.uuid4()))


async def heals(servers: Servers, grant: uuid.UUID, *, seconds: float = 60) -> Reply:
    """Return the first answer that arrives within `seconds`."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await use(servers, grant)
        except RedisAwayError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.02)
