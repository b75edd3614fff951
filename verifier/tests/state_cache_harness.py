"""A follower on its own event loop, driven by a test that makes changes in the test's thread."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from django.db import connection

from registry.models import ServiceProvider
from verifier.models import StateChange
from verifier.services import state_watcher
from verifier.services.cached_token import CachedToken
from verifier.services.state_cache import StateCache, credentials_digest
from verifier.services.state_change_feed import state_since
from verifier.services.state_watcher import StateNews
from verifier.tests.scene import Scene

T = TypeVar("T")


# Recorded as dropped when the whole cache was.
EVERYTHING = "everything"


class _Told(StateCache):
    """A follower that runs hooks for each change, after it has applied the change."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.hooks: list[Callable[[str, str], None]] = []

    def _hear(self, news: StateNews) -> None:
        super()._hear(news)
        told = [(EVERYTHING, "")] if news.everything else []
        for subject, subject_id in [
            *told,
            *((each.subject, each.subject_id) for each in news.changes),
        ]:
            for hook in self.hooks:
                hook(subject, subject_id)


class Followed:
    """A follower, called from outside its event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.cached_state = _Told(self.loop)
        self.dropped: list[tuple[str, str]] = []
        self.cached_state.hooks.append(
            lambda subject, subject_id: self.dropped.append((subject, subject_id))
        )
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the loop and return its result."""
        return asyncio.run_coroutine_threadsafe(awaited, self.loop).result(20)

    def call(self, asked: Callable[..., T], *arguments: Any) -> T:
        """Call a function in the loop's thread and return its result."""

        async def called() -> T:
            return asked(*arguments)

        return self.wait(called())

    def state(self, jti: str) -> CachedToken | None:
        return self.wait(self.cached_state.state(jti))

    def held(self, jti: str) -> CachedToken | None:
        return self.call(self.cached_state.held_state, jti)

    def provider(self, header: str) -> ServiceProvider | None:
        return self.wait(self.cached_state.provider(header))

    def holds_provider(self, header: str) -> bool:
        """Whether the cache holds the service provider of these credentials."""
        return self.call(self.cached_state.held_provider, credentials_digest(header)) is not None

    def end(self) -> None:
        self.call(self.cached_state.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def followed(patch: pytest.MonkeyPatch, *, look_seconds: float = 0.1) -> Iterator[Followed]:
    """A started follower that polls every `look_seconds`; older changes are not reported again."""
    settle()
    patch.setattr(state_watcher, "LOOK_SECONDS", look_seconds)
    made = Followed()
    try:
        made.call(made.cached_state.start)
        yield made
    finally:
        made.end()


def settle() -> None:
    """Wait until no transaction is open that began before the newest change.

    PostgreSQL numbers transactions per server, so those of tests in other databases count too.
    """
    newest, deadline = StateChange.objects.order_by("id").last(), time.monotonic() + 60
    while (
        newest
        and state_since(newest.position).position <= newest.position
        and time.monotonic() < deadline
    ):
        time.sleep(0.01)


@contextmanager
def open_transaction() -> Iterator[None]:
    """Keep a writing transaction open, as a long one in any database of the server would be."""
    if connection.vendor != "postgresql":
        yield
        return
    other = connection.copy()
    try:
        other.set_autocommit(False)
        with other.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
        yield
    finally:
        other.close()


def basic(place: Scene, secret: str | None = None) -> str:
    """The Authorization header of a service provider."""
    pair = f"{place.provider.pk}:{secret or place.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait until `true()`, at most `seconds`; return the seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began <= seconds, "it did not come to be"
        time.sleep(0.005)
    return time.monotonic() - began
