"""What a client keeps in memory: tokens, grants, service providers. No I/O of its own."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar
from weakref import WeakKeyDictionary

from agentauth.protocol.errors import TemporarilyUnavailableError

from .answers import text
from .errors import RegistryError

# A token is renewed when a fifth of its life, at most a minute, is left: a call under way does not outlive it.
_MARGIN_SECONDS: Final = 60
_MARGIN_SHARE: Final = 5

# Seconds. Grants and service providers change rarely; during an outage the known ones are used.
LOOKED_UP_SECONDS: Final = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kept(Generic[T]):
    """A value, and the unix times at which to renew it and at which it ends."""

    value: T = field(repr=False)
    renew_at: float
    expires_at: float


def looked_up(value: T) -> Kept[T]:
    """A value of the registry, as of now."""
    return Kept(value, renew_at=time.time() + LOOKED_UP_SECONDS, expires_at=float("inf"))


def token_of(answer: Mapping[str, object], *, asked_at: float) -> Kept[str]:
    """Read `POST /v1/tokens`. Raises RegistryError.

    Life counts from `asked_at`, before the question: a slow answer must not make a token look younger than it is.
    """
    value, life = text(answer, "access_token"), answer.get("expires_in")
    if not isinstance(life, int):
        raise RegistryError("The registry's answer has no expires_in that can be used.", status=200)
    margin = min(_MARGIN_SECONDS, life / _MARGIN_SHARE)
    return Kept(value, renew_at=asked_at + life - margin, expires_at=asked_at + life)


class Locks:
    """A lock for each name, of the running event loop: one client may serve several in turn."""

    def __init__(self) -> None:
        self._by_loop = WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, ...], asyncio.Lock]]()

    def of(self, *name: str) -> asyncio.Lock:
        """The lock of this name in the running loop."""
        locks = self._by_loop.setdefault(asyncio.get_running_loop(), {})
        return locks.setdefault(name, asyncio.Lock())


class Cache(Generic[T]):
    """Values by a name of one or more parts, for one client; none is ever written to disk."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, ...], Kept[T]] = {}
        self._locks = Locks()

    async def get(self, name: tuple[str, ...], ask: Callable[[], Awaitable[Kept[T]]]) -> T:
        """The value: the kept one while it is fresh, else a new one. Raises what `ask` raises."""
        # One lock for each name: callers at the same moment share one question.
        async with self._locks.of(*name):
            kept = self._kept.get(name)
            if kept is None or kept.renew_at <= time.time():
                try:
                    fresh = await ask()
                except TemporarilyUnavailableError:
                    # Renewal is early, so the old one still carries over a short outage.
                    if kept is None or kept.expires_at <= time.time():
                        raise
                    return kept.value
                self._kept[name] = kept = fresh
            return kept.value

    def forget(self, *first: str) -> None:
        """Drop the values whose names begin with these parts; all without any."""
        self._kept = {name: kept for name, kept in self._kept.items() if name[: len(first)] != first}
