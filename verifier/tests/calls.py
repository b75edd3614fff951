"""Calls of Redis's scripts by tests, in a loop of their own, and what is expected when they fail."""

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest

from tests.pace import within
from verifier.flow import judge
from verifier.services import home
from verifier.services.basis import Basis
from verifier.services.moment import Moment
from verifier.services.turns import ALONE
from verifier.services.web import Web, finished
from verifier.stores import StoreCall, scripts
from verifier.stores.connection import RedisAwayError, Servers
from verifier.stores.database import Outcome
from verifier.stores.scripts import Reply, read_reply

T = TypeVar("T")
NOW = 1_764_118_000_000_000
# Long past every deadline, and far from what a hanging call would take.
SLACK_SECONDS = 2.0
QUICK = 0.05


def on_loop(url: str, work: Callable[[Servers], Awaitable[T]], **given: Any) -> T:
    """What comes of `work` in a loop of its own, with connections of its own."""

    async def main() -> T:
        servers = Servers(url, **given)
        try:
            return await work(servers)
        finally:
            servers.close()

    return asyncio.run(main())


def decided(call: StoreCall) -> Outcome:
    """What comes of a prepared call in the web process."""
    web, basis = Web(call.now), Basis(Moment.now(), home.LEASE.current())
    return finished(judge(web, call, basis, ALONE, lambda: None))


def judge_arguments(
    grant: uuid.UUID, *, interval: int = 1_000_000, jti: str = ""
) -> tuple[int, list[bytes], list[bytes | str | int]]:
    """Shard, keys and arguments of one use of a grant, whose rate is one in `interval` µs with a huge burst.

    So its first use is answered by NOW + interval, which tells calls apart.
    """
    shard = scripts.shard_of(grant)
    keys = [
        scripts.epoch_key(shard),
        scripts.proof_key(shard, "jkt", jti or str(uuid.uuid4())),
        scripts.rate_key(shard, grant),
        scripts.events_key(shard),
        scripts.count_key(shard),
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
    servers: Servers, grant: uuid.UUID, *, jti: str = "", interval: int = 1_000_000, deadline: float = 5
) -> Reply:
    shard, keys, args = judge_arguments(grant, interval=interval, jti=jti)
    return read_reply(await servers.evaluate(scripts.JUDGE, shard, keys, args, deadline=deadline))


async def begin(servers: Servers) -> None:
    """Epoch 1, on a machine that may be busy."""
    until = time.monotonic() + 20
    while True:
        try:
            return await servers.mark(1)
        except RedisAwayError:
            if time.monotonic() > until:
                raise


async def fails(call: Awaitable[Any]) -> RedisAwayError:
    """The refusal of a call that must not be answered, in time."""
    began = time.monotonic()
    with pytest.raises(RedisAwayError) as refused:
        await call
    assert time.monotonic() - began < within(SLACK_SECONDS)
    return refused.value


async def heals(servers: Servers, grant: uuid.UUID, *, seconds: float = 10) -> Reply:
    """The first answer, within some seconds."""
    until = time.monotonic() + seconds
    while True:
        try:
            return await use(servers, grant)
        except RedisAwayError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.02)
