"""A process's own copy of the state it decides by: asked without waiting, and never older than it says."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from django.utils import timezone

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import InvalidClientError, TemporarilyUnavailableError
from agentauth.protocol.token import TokenKey
from kms.state import Subject
from registry.authentication import read_basic
from registry.models import ServiceProvider
from registry.services.credentials import find_by_credentials
from verifier.services.basis import check_age
from verifier.services.home import CLOCK_WRONG
from verifier.services.loads import Loads
from verifier.services.moment import CLOCK_SECONDS, Moment
from verifier.services.snapshots import Copies, Known, known_tokens
from verifier.services.state import Change
from verifier.services.watching import News, Watcher

# Looks come twice a second. Where the last is older than this (s), the process stood still or the database is slow.
_LATE_SECONDS: Final = 1.0
# How long (s) a call waits for the next look then.
_CATCH_UP_SECONDS: Final = 0.25
# Some 4 kB each, with what `proved_tokens` keeps of them and one kept yes.
_MOST_STATES: Final = 120_000
_MOST_PROVIDERS: Final = 4_096
# Rows of one query: so few that reading them does not hold the loop's thread up.
_BATCH: Final = 200
_MOST_WAITING: Final = 20_000
# Credentials that are not held have one thread and a queue of their own, as long as a process has connections, and each
# query takes the whole queue: good ones get in, however many others guess.
_MOST_UNPROVED: Final = 512
# So long after a query the next one begins (s): 10 a second, some 2 % of a core, however many guess. Whoever comes to an
# idle process does not wait.
_GUESSES_PAUSE: Final = 0.1
# Of the tokens that are over, how many are given up at each look: so few that nobody waits for it.
_MOST_ENDED: Final = 1_000
_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 3.0


class Follower:
    """Tokens, service providers and token keys as one process knows them. One per process, made after the fork.

    Everything after `start` but `look` and `token_keys` belongs to the thread of the loop: what is asked between two awaits
    is asked of one state of the world. Two threads read what is not held, one authenticates, one watches (`Watcher`).
    Ask `look` before each decision: without it the rest may be as old as the last look that succeeded.
    `missed` hears `token` or `credentials` where somebody asked for what is not held.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        missed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._missed = missed
        # The last look.
        self._began: Moment | None = None
        self._clock_ahead = 0.0
        self._keys: Mapping[str, TokenKey] | None = None
        self._states: Copies[str, Known] = Copies(_MOST_STATES, attrgetter("rests_on"))
        self._providers: Copies[bytes, ServiceProvider] = Copies(_MOST_PROVIDERS, _rests_on)
        # Since the last news, and no more than _MOST_UNPROVED: while the database is away no news comes.
        self._refused: set[bytes] = set()
        self._state_loads = Loads(
            known_tokens,
            keep=self._states.keep,
            rests_on=attrgetter("rests_on"),
            threads=2,
            batch=_BATCH,
            most_waiting=_MOST_WAITING,
        )
        self._provider_loads = Loads(
            _authenticated,
            keep=lambda header, provider: self._providers.keep(credentials_digest(header), provider),
            rests_on=_rests_on,
            threads=1,
            batch=_MOST_UNPROVED,
            pause=_GUESSES_PAUSE,
            most_waiting=_MOST_UNPROVED,
        )
        self._next_look: asyncio.Future[None] | None = None
        # The last look when a wait for the next one timed out. Until that comes, no call waits again.
        self._last_before_gap: Moment | None = None
        self._looked = threading.Event()
        self._watcher = Watcher(self._tell)

    def start(self) -> None:
        """Begin to follow; returns after the first look, for which this thread waits, be it the loop's or another.

        Raises TemporarilyUnavailableError where none succeeds within ten seconds; then nothing is left running.
        """
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._state_loads.start(self._loop)
        self._provider_loads.start(self._loop)
        self._watcher.start()
        if not self._looked.wait(_START_SECONDS):
            self.stop()
            raise TemporarilyUnavailableError("The database could not be read.")

    def stop(self) -> None:
        """End all threads. Call it before the loop is closed."""
        self._watcher.stop(_STOP_SECONDS)
        self._state_loads.stop(_STOP_SECONDS)
        self._provider_loads.stop(_STOP_SECONDS)

    def look(self) -> Moment:
        """When the look began that what is held is as of.

        Raises TemporarilyUnavailableError where that was too long ago, or this host's clock is wrong.
        """
        began = self._checked()
        check_age(began)
        return began

    async def caught_up(self) -> Moment:
        """The same; after a standstill of this process, once a look that began after it has told what changed meanwhile.

        Where the database does not answer, it is waited for once. What is held is then as old as `look` says.
        """
        began, loop = self._checked(), asyncio.get_running_loop()
        until = loop.time() + _CATCH_UP_SECONDS
        while began.age() > _LATE_SECONDS and began is not self._last_before_gap:
            if loop.time() >= until:
                self._last_before_gap = began
                break
            if self._next_look is None:
                self._next_look = loop.create_future()
            await asyncio.wait([self._next_look], timeout=until - loop.time())
            # It may have begun before the standstill.
            began = self._checked()
        return self.look()

    def _checked(self) -> Moment:
        if abs(self._clock_ahead) > CLOCK_SECONDS:
            raise TemporarilyUnavailableError(CLOCK_WRONG)
        if self._began is None:
            raise TemporarilyUnavailableError
        return self._began

    def held_provider(self, digest: bytes) -> ServiceProvider | None:
        """The service provider that these credentials are held for."""
        return self._providers.get(digest)

    async def provider(self, authorization: str) -> ServiceProvider | None:
        """The active service provider whose credentials this header (`Basic …`) holds; None where they are refused.

        Held by the header's digest: a yes until it changes, a no until the next look. Raises TemporarilyUnavailableError.
        """
        digest = credentials_digest(authorization)
        held = self._providers.get(digest)
        if held is None and digest not in self._refused:
            self._missed("credentials")
            held = await self._provider_loads.get(authorization)
            if held is None and len(self._refused) < _MOST_UNPROVED:
                self._refused.add(digest)
        return held

    def token_keys(self) -> Mapping[str, TokenKey]:
        """The keys whose signatures under tokens count, by `kid`, as of the last look or the last change of a key.

        Raises TemporarilyUnavailableError where a key changed and they could not be read since. From any thread.
        """
        keys = self._keys
        if keys is None:
            raise TemporarilyUnavailableError
        return keys

    def held_state(self, jti: str) -> Known | None:
        """What is held of this token."""
        return self._states.get(jti)

    async def state(self, jti: str) -> Known | None:
        """What is held of this token, or is now read of it; None where it was never issued here.

        Raises TemporarilyUnavailableError.
        """
        held = self._states.get(jti)
        if held is None:
            self._missed("token")
            held = await self._state_loads.get(jti)
        return held

    def _tell(self, news: News) -> None:
        """Called in the watching thread."""
        if self._looked.is_set():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._hear, news)
        elif news.look is not None:
            # Until this is set nobody asks, and nothing is held that could have changed.
            self._hear(news)
            self._looked.set()

    def _hear(self, news: News) -> None:
        """Forget first, then count as younger: an answer in between is at worst one that is read anew."""
        self._refused.clear()
        if news.everything:
            self._states.clear()
            self._providers.clear()
        for change in news.changes:
            self._states.drop(change)
            self._providers.drop(change)
        self._state_loads.hear(news.changes, everything=news.everything)
        self._provider_loads.hear(news.changes, everything=news.everything)
        if news.look is not None:
            self._keys = news.look.token_keys
        elif any(change.subject == Subject.KEY for change in news.changes):
            self._keys = None
        if news.look is not None:
            self._began, self._clock_ahead = news.look.began, news.look.clock_ahead
            if self._next_look is not None:
                self._next_look.set_result(None)
                self._next_look = None
            # Nobody asks for a token that is over: those would fill the memory and push out what is alive.
            now = timezone.now()
            self._states.drop_ended(lambda known: known.expires_at <= now, _MOST_ENDED)


def _authenticated(headers: Sequence[str]) -> dict[str, ServiceProvider | Exception]:
    read: dict[str, tuple[str, str]] = {}
    for header in headers:
        # Left out where it is none: there is no such caller.
        with contextlib.suppress(InvalidClientError):
            read[header] = read_basic(header)
    found = zip(read, find_by_credentials(list(read.values())), strict=True)
    return {header: provider for header, provider in found if provider is not None}


def _rests_on(provider: ServiceProvider) -> tuple[int, ...]:
    return (hash(Change(Subject.SERVICE_PROVIDER, str(provider.pk))),)


def credentials_digest(header: str) -> bytes:
    """By which the credentials of an `Authorization` header are known here."""
    return sha256(header.encode(errors="surrogatepass"))
