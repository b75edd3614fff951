"""What a client caches in memory: tokens, grants, service providers. No I/O of its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from agentauth.protocol.errors import TemporarilyUnavailableError

from .errors import RegistryError
from .registry_answers import text

# A token is renewed when a fifth of its life, at most 60 s, is left: it outlives a call in
# progress.
_MARGIN_SECONDS: Final = 60
_MARGIN_SHARE: Final = 5

# Seconds. Grants and service providers change rarely; during an outage cached ones are used.
LOOKED_UP_SECONDS: Final = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """A value, and the unix times at which to renew it and at which it ends."""

    value: T = field(repr=False)
    renew_at: float
    expires_at: float


def looked_up(value: T) -> Kept[T]:
    """A value from the registry, as of now."""
    return Kept(value, renew_at=time.time() + LOOKED_UP_SECONDS, expires_at=float("inf"))


def token_of(answer: Mapping[str, object], *, asked_at: float) -> Kept[str]:
    """Read `POST /v1/tokens`. Raises RegistryError.

    Life counts from `asked_at`, before the request: a slow answer must not extend a token's life.
    """
    value, life = text(answer, "access_token"), answer.get("expires_in")
    if not isinstance(life, int):
        raise RegistryError("The registry's answer has no usable expires_in.", status=200)
    margin = min(_MARGIN_SECONDS, life / _MARGIN_SHARE)
    return Kept(value, renew_at=asked_at + life - margin, expires_at=asked_at + life)


class Locks:
    """A lock per name and running event loop: one client may serve several loops in turn."""

    def __init__(self) -> None:
        self._by_loop = WeakKeyDictionary[
            asyncio.AbstractEventLoop, dict[tuple[str, ...], asyncio.Lock]
        ]()

    def of(self, *name: str) -> asyncio.Lock:
        """The lock of this name in the running loop."""
        locks = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        return locks.setdefault(name, asyncio.Lock())


class Cache(Generic[T]):
    """Values by a name of one or more parts, for one client. Never written to disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Kept[T]] = {}
        self._locks = Locks()

    async def get(self, name: tuple[str, ...], ask: Callable[[], Awaitable[Kept[T]]]) -> T:
        """The cached value while it is fresh, else a new one. Raises what `ask` raises."""
        # One lock per name: concurrent callers share one request.
        async with self._locks.of(*name):
            kept = self._kept.get(name)
            if kept is None or kept.renew_at <= time.time():
                try:
                    fresh = await ask()
                except TemporarilyUnavailableError:
                    # Renewal is early, so the old value bridges a short outage.
                    if kept is None or kept.expires_at <= time.time():
                        raise
                    return kept.value
                self._kept[name] = kept = fresh
            return kept.value

    def drop(self, value: T) -> bool:
        """Drop this value if it is cached; True if it was."""
        names = [name for name, kept in self._kept.items() if kept.value == value]
        for name in names:
            del self._kept[name]
        return bool(names)

    def forget(self, *first: str) -> None:
        """Drop the values whose names begin with these parts; without parts, all."""
        self._kept = {
            name: kept for name, kept in self._kept.items() if name[: len(first)] != first
        }
