"""The client's cache: shared requests, outages, dropped values, and answers it must refuse."""

import asyncio
import gc
import time
import weakref
from dataclasses import replace

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.sdk.client_cache import Cache, CachedValue, Locks, read_token
from agentauth.sdk.errors import RegistryError

NAME = ("provider", "grant")
STALE = CachedValue("old", renew_at=0, expires_at=float("inf"))
FRESH = CachedValue("new", renew_at=float("inf"), expires_at=float("inf"))


class Registry:
    """Answers with `answer`, or is unavailable without one, once `released`; counts requests."""

    def __init__(self, answer: CachedValue[str] | None) -> None:
        self.answer, self.requests = answer, 0
        self.asked, self.released = asyncio.Event(), asyncio.Event()

    async def ask(self) -> CachedValue[str]:
        self.requests += 1
        self.asked.set()
        await self.released.wait()
        if self.answer is None:
            raise TemporarilyUnavailableError
        return self.answer


async def cache_with(value: CachedValue[str]) -> Cache[str]:
    cache, registry = Cache[str](), Registry(value)
    registry.released.set()
    await cache.get(NAME, registry.ask)
    return cache


async def callers(cache: Cache[str], registry: Registry) -> list[str | BaseException]:
    """What five concurrent callers get."""
    calls = [asyncio.ensure_future(cache.get(NAME, registry.ask)) for _ in range(5)]
    await registry.asked.wait()
    registry.released.set()
    return await asyncio.gather(*calls, return_exceptions=True)


def test_in_an_outage_concurrent_callers_share_a_request_and_the_old_value() -> None:
    async def outage() -> None:
        registry = Registry(None)
        assert await callers(await cache_with(STALE), registry) == ["old"] * 5
        assert registry.requests == 1

    asyncio.run(outage())


def test_without_a_value_concurrent_callers_share_the_failed_request() -> None:
    async def outage() -> None:
        cache, registry = Cache[str](), Registry(None)
        found = await callers(cache, registry)
        assert [type(each) for each in found] == [TemporarilyUnavailableError] * 5
        assert registry.requests == 1
        # A later call asks again.
        registry.answer = FRESH
        assert await cache.get(NAME, registry.ask) == "new"

    asyncio.run(outage())


def test_failed_renewal_is_retried_a_few_seconds_later(monkeypatch: pytest.MonkeyPatch) -> None:
    async def outage() -> None:
        now = time.time()
        cache, registry = await cache_with(STALE), Registry(None)
        registry.released.set()
        assert await cache.get(NAME, registry.ask) == "old"
        registry.answer = FRESH
        assert await cache.get(NAME, registry.ask) == "old"
        monkeypatch.setattr(time, "time", lambda: now + 10)
        assert await cache.get(NAME, registry.ask) == "new"

    asyncio.run(outage())


def test_old_value_is_not_used_after_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def outage() -> None:
        now = time.time()
        cache = await cache_with(CachedValue("old", renew_at=0, expires_at=now + 1))
        registry = Registry(None)
        registry.released.set()
        monkeypatch.setattr(time, "time", lambda: now + 0.5)
        assert await cache.get(NAME, registry.ask) == "old"
        monkeypatch.setattr(time, "time", lambda: now + 1)
        with pytest.raises(TemporarilyUnavailableError):
            await cache.get(NAME, registry.ask)

    asyncio.run(outage())


@pytest.mark.parametrize("is_forgotten", [True, False])
def test_value_dropped_during_a_failed_renewal_is_not_used(is_forgotten: bool) -> None:
    async def drop() -> None:
        cache, registry = await cache_with(STALE), Registry(None)
        call = asyncio.ensure_future(cache.get(NAME, registry.ask))
        await registry.asked.wait()
        if is_forgotten:
            cache.forget(NAME[0])
        else:
            assert cache.drop("old")
        registry.released.set()
        with pytest.raises(TemporarilyUnavailableError):
            await call

    asyncio.run(drop())


def test_answer_to_a_request_begun_before_forget_is_not_cached() -> None:
    async def forget() -> None:
        cache, registry = Cache[str](), Registry(replace(FRESH, value="before"))
        call = asyncio.ensure_future(cache.get(NAME, registry.ask))
        await registry.asked.wait()
        cache.forget(NAME[0])
        registry.released.set()
        assert await call == "before"
        registry.answer = FRESH
        assert await cache.get(NAME, registry.ask) == "new"

    asyncio.run(forget())


def test_locks_of_a_closed_event_loop_are_released() -> None:
    locks = Locks()

    async def contend() -> weakref.ref[asyncio.AbstractEventLoop]:
        async def hold() -> None:
            async with locks.of("name"):
                await asyncio.sleep(0)

        await asyncio.gather(hold(), hold())
        return weakref.ref(asyncio.get_running_loop())

    first, last = [asyncio.run(contend()) for _ in range(2)]
    gc.collect()
    assert first() is None
    # The last one is released when the client is used in another loop.
    assert last() is not None


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"access_token": "a"},
        {"expires_in": 60},
        {"access_token": 1, "expires_in": 60},
        {"access_token": "a", "expires_in": "60"},
        {"access_token": "a", "expires_in": True},
        {"access_token": "a", "expires_in": 0},
        {"access_token": "a", "expires_in": -60},
    ],
)
def test_an_answer_without_a_token_and_its_life_is_an_error(answer: dict[str, object]) -> None:
    with pytest.raises(RegistryError, match="has no"):
        read_token(answer, asked_at=0.0)
