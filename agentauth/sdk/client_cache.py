"""What a client caches in memory: tokens, grants, service providers. No I/O of its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from agentauth.protocol.errors import TemporarilyUnavailableError

from .errors import RegistryError
from .registry_answers import text

# A token is renewed when a fifth of its lifetime is left, at most 60 s, so that it stays valid
# during a call.
_RENEW_BEFORE_SECONDS: Final = 60
_LIFETIME_DIVISOR: Final = 5

# Seconds. Grants and service providers change rarely. While the registry is unavailable, older
# ones are used without limit.
LOOKUP_SECONDS: Final = 300

# Seconds. After a failed renewal the cached value is used for so long before the next try, since
# each try may take as long as a timeout and its retries.
_RETRY_SECONDS: Final = 5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CachedValue(Generic[T]):
    """A value, and the unix times at which to renew it and at which it ends."""

    value: T = field(repr=False)
    renew_at: float
    expires_at: float


def cache_lookup(value: T) -> CachedValue[T]:
    """A value that the registry has just answered."""
    return CachedValue(value, renew_at=time.time() + LOOKUP_SECONDS, expires_at=float("inf"))


def read_token(answer: Mapping[str, object], *, asked_at: float) -> CachedValue[str]:
    """Read the answer to `POST /v1/tokens`. Raises RegistryError.

    Its lifetime counts from `asked_at`, before the request: a slow answer must not extend it.
    """
    value, lifetime = text(answer, "access_token"), answer.get("expires_in")
    if not isinstance(lifetime, int) or isinstance(lifetime, bool) or lifetime <= 0:
        raise RegistryError("The registry's answer has no usable expires_in.", status=200)
    margin = min(_RENEW_BEFORE_SECONDS, lifetime / _LIFETIME_DIVISOR)
    return CachedValue(value, renew_at=asked_at + lifetime - margin, expires_at=asked_at + lifetime)


class Locks:
    """A lock per name and running event loop: one client may serve several loops in turn."""

    def __init__(self) -> None:
        self._by_loop: dict[asyncio.AbstractEventLoop, dict[tuple[str, ...], asyncio.Lock]] = {}

    def of(self, *name: str) -> asyncio.Lock:
        """The lock of this name in the running loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._by_loop:
            # A lock that a task waited for refers to its loop: weak references would keep both.
            open_loops = {
                each: locks for each, locks in self._by_loop.items() if not each.is_closed()
            }
            self._by_loop = open_loops | {loop: {}}
        return self._by_loop[loop].setdefault(name, asyncio.Lock())


class Cache(Generic[T]):
    """Values by a name of one or more parts. Never written to disk."""

    def __init__(self) -> None:
        self._cached: dict[tuple[str, ...], CachedValue[T]] = {}
        # Names whose next answer may be cached: `forget` removes those of requests in flight.
        self._may_cache: set[tuple[str, ...]] = set()
        self._failures: dict[tuple[str, ...], TemporarilyUnavailableError] = {}
        self._locks = Locks()

    async def get(self, name: tuple[str, ...], ask: Callable[[], Awaitable[CachedValue[T]]]) -> T:
        """The cached value while it is fresh, else a new one. Raises what `ask` raises.

        If `ask` raises TemporarilyUnavailableError, returns the cached value unless it has ended.
        """
        failure = self._failures.get(name)
        # One lock per name: concurrent callers share one request, whether it succeeds or the
        # registry is unavailable.
        async with self._locks.of(*name):
            cached = self._cached.get(name)
            if cached is not None and time.time() < cached.renew_at:
                return cached.value
            if self._failures.get(name) is not failure:
                raise self._failures[name]
            self._may_cache.add(name)
            try:
                fresh = await ask()
            except TemporarilyUnavailableError as error:
                # Looked up again: it may have been dropped during the request.
                cached, now = self._cached.get(name), time.time()
                if cached is None or cached.expires_at <= now:
                    self._failures[name] = error
                    raise
                renew_at = min(now + _RETRY_SECONDS, cached.expires_at)
                self._cached[name] = replace(cached, renew_at=renew_at)
                return cached.value
            if name in self._may_cache:
                self._cached[name] = fresh
            return fresh.value

    def drop(self, value: T) -> bool:
        """Drop this value under every name; True if any had it."""
        names = [name for name, cached in self._cached.items() if cached.value == value]
        for name in names:
            del self._cached[name]
        return bool(names)

    def forget(self, *prefix: str) -> None:
        """Drop the values whose names begin with these parts; without parts, all.

        The answer to a request in flight is not cached either.
        """
        for name in [*self._cached, *self._may_cache]:
            if name[: len(prefix)] == prefix:
                self._cached.pop(name, None)
                self._may_cache.discard(name)
