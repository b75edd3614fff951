"""A follower in a loop of its own, driven by a test that makes its changes in the test's own thread."""

import asyncio
import base64
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest

from registry.models import ServiceProvider
from verifier.models import StateChange
from verifier.services import watching
from verifier.services.following import Follower, credentials_digest
from verifier.services.snapshots import Known
from verifier.services.state import state_since
from verifier.services.watching import News
from verifier.tests.scene import Scene

T = TypeVar("T")


# Stands among what was dropped where all of it was.
EVERYTHING = "everything"


class _Told(Follower):
    """Says what it was told, after it has acted on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.hooks: list[Callable[[str, str], None]] = []

    def _hear(self, news: News) -> None:
        super()._hear(news)
        told = [(EVERYTHING, "")] if news.everything else []
        for subject, subject_id in [*told, *((each.subject, each.subject_id) for each in news.changes)]:
            for hook in self.hooks:
                hook(subject, subject_id)


class Followed:
    """A follower, asked from outside its loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.follower = _Told(self.loop)
        self.dropped: list[tuple[str, str]] = []
        self.follower.hooks.append(lambda subject, subject_id: self.dropped.append((subject, subject_id)))
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def wait(self, awaited: Coroutine[Any, Any, T]) -> T:
        """What it gives, run in the loop."""
        return asyncio.run_coroutine_threadsafe(awaited, self.loop).result(20)

    def call(self, asked: Callable[..., T], *arguments: Any) -> T:
        """What it gives, called in the loop's thread."""

        async def called() -> T:
            return asked(*arguments)

        return self.wait(called())

    def state(self, jti: str) -> Known | None:
        return self.wait(self.follower.state(jti))

    def held(self, jti: str) -> Known | None:
        return self.call(self.follower.held_state, jti)

    def provider(self, header: str) -> ServiceProvider | None:
        return self.wait(self.follower.provider(header))

    def holds_provider(self, header: str) -> bool:
        """Whether it is known whose credentials these are."""
        return self.call(self.follower.held_provider, credentials_digest(header)) is not None

    def end(self) -> None:
        self.call(self.follower.stop)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def followed(patch: pytest.MonkeyPatch, *, look_seconds: float = 0.1) -> Iterator[Followed]:
    """One that has looked once and looks every so many seconds; of what was before, it is told nothing again."""
    settle()
    patch.setattr(watching, "LOOK_SECONDS", look_seconds)
    made = Followed()
    try:
        made.call(made.follower.start)
        yield made
    finally:
        made.end()


def settle() -> None:
    """Wait until nothing is open that began before the newest change.

    PostgreSQL numbers the transactions of all its databases together: those of the tests beside this one, too.
    """
    newest, deadline = StateChange.objects.order_by("id").last(), time.monotonic() + 60
    while newest and state_since(newest.position).position <= newest.position and time.monotonic() < deadline:
        time.sleep(0.01)


def basic(place: Scene, secret: str | None = None) -> str:
    """The header of a service provider's credentials."""
    pair = f"{place.provider.pk}:{secret or place.secret}".encode()
    return "Basic " + base64.b64encode(pair).decode()


def until(true: Callable[[], bool], seconds: float) -> float:
    """Wait for it, at most so long; how many seconds it took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began <= seconds, "it did not come to be"
        time.sleep(0.005)
    return time.monotonic() - began
