"""The state cache of a verifier process: read without waiting, with bounded staleness."""

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
from kms.state_change_publisher import Subject
from registry.authentication import read_basic
from registry.models import ServiceProvider
from registry.services.provider_authentication import find_by_credentials
from verifier.services.cache_loader import BatchLoader
from verifier.services.cached_token import CachedToken, load_tokens
from verifier.services.clock_readings import CLOCK_SKEW_SECONDS, ClockReading
from verifier.services.freshness import check_age
from verifier.services.replay_cache_lease import CLOCK_WRONG
from verifier.services.state_change_feed import Change
from verifier.services.state_watcher import StateNews, Watcher
from verifier.services.tagged_cache import TaggedCache

# The watcher reads twice a second. If its last read is older than this (s), the process stalled or
# the database is slow.
_LATE_SECONDS: Final = 1.0
# How long (s) a call then waits for the next read.
_CATCH_UP_SECONDS: Final = 0.25
# Some 4 kB each, including the entry in `verified_token_cache` and one cached yes.
_MOST_STATES: Final = 120_000
_MOST_PROVIDERS: Final = 4_096
# Rows of one query: few enough that converting them does not stall the event loop.
_BATCH: Final = 200
_MOST_WAITING: Final = 20_000
# Uncached credentials have a thread and a queue of their own. The queue is as long as a process has
# connections and each query takes all of it, so guesses cannot keep valid credentials out.
_MOST_UNPROVED: Final = 512
# Pause (s) after such a query: at most 10 a second, some 2 % of a core, however many guesses come.
# A caller of an idle process does not wait.
_GUESSES_PAUSE: Final = 0.1
# Expired tokens removed at each read: few enough that no call waits for it.
_MOST_ENDED: Final = 1_000
_START_SECONDS: Final = 10.0
_STOP_SECONDS: Final = 3.0


class StateCache:
    """Caches tokens, service providers and token keys. One per process, created after the fork.

    After `start`, call everything but `state_read_at` and `token_keys` in the event loop's thread
    only: all reads between two awaits then see the same state. Two threads load tokens, one loads
    credentials, one watches for changes (`Watcher`). Call `state_read_at` before each decision:
    without it the cached state may be older than allowed. `missed` is called with `token` or
    `credentials` at each cache miss.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        missed: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._loop = loop
        self._missed = missed
        # When the watcher's last read began.
        self._began: ClockReading | None = None
        self._clock_ahead = 0.0
        self._keys: Mapping[str, TokenKey] | None = None
        self._states: TaggedCache[str, CachedToken] = TaggedCache(
            _MOST_STATES, attrgetter("rests_on")
        )
        self._providers: TaggedCache[bytes, ServiceProvider] = TaggedCache(
            _MOST_PROVIDERS, _rests_on
        )
        # Credentials refused since the last news. Bounded, since without the
        # database no news comes.
        self._refused: set[bytes] = set()
        self._state_loads = BatchLoader(
            load_tokens,
            keep=self._states.keep,
            rests_on=attrgetter("rests_on"),
            threads=2,
            batch=_BATCH,
            most_waiting=_MOST_WAITING,
        )
        self._provider_loads = BatchLoader(
            _authenticate,
            keep=lambda header, provider: self._providers.keep(
                credentials_digest(header), provider
            ),
            rests_on=_rests_on,
            threads=1,
            batch=_MOST_UNPROVED,
            pause=_GUESSES_PAUSE,
            most_waiting=_MOST_UNPROVED,
        )
        self._next_look: asyncio.Future[None] | None = None
        # The last read when a wait for the next one timed out. No call waits again
        # until the next one.
        self._last_before_gap: ClockReading | None = None
        self._looked = threading.Event()
        self._watcher = Watcher(self._tell)

    def start(self) -> None:
        """Start the threads and block until the first read is done.

        Raises TemporarilyUnavailableError if none succeeds within ten seconds, and stops the
        threads.
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
        """Stop all threads. Call it before the loop is closed."""
        self._watcher.stop(_STOP_SECONDS)
        self._state_loads.stop(_STOP_SECONDS)
        self._provider_loads.stop(_STOP_SECONDS)

    def state_read_at(self) -> ClockReading:
        """When the last read began: the cached state is as of then.

        Raises TemporarilyUnavailableError if that is too long ago, or this host's clock is off.
        """
        began = self._check_clock()
        check_age(began)
        return began

    async def wait_for_fresh_state(self) -> ClockReading:
        """As `state_read_at`, but after a stall of this process it first waits for a newer read.

        If the database does not answer, only one call waits; the state is then as old as
        `state_read_at` says.
        """
        began = self._check_clock()
        if began.age() <= _LATE_SECONDS:
            return began
        loop = asyncio.get_running_loop()
        until = loop.time() + _CATCH_UP_SECONDS
        while began.age() > _LATE_SECONDS and began is not self._last_before_gap:
            if loop.time() >= until:
                self._last_before_gap = began
                break
            if self._next_look is None:
                self._next_look = loop.create_future()
            await asyncio.wait([self._next_look], timeout=until - loop.time())
            # That read may have begun before the stall, so check again.
            began = self._check_clock()
        return self.state_read_at()

    def _check_clock(self) -> ClockReading:
        if abs(self._clock_ahead) > CLOCK_SKEW_SECONDS:
            raise TemporarilyUnavailableError(CLOCK_WRONG)
        if self._began is None:
            raise TemporarilyUnavailableError
        return self._began

    def held_provider(self, digest: bytes) -> ServiceProvider | None:
        """The cached service provider of these credentials, by `credentials_digest`."""
        return self._providers.get(digest)

    async def provider(self, authorization: str) -> ServiceProvider | None:
        """The active service provider with these credentials (`Basic …`); None if they are refused.

        Cached by the header's digest: a yes until the service provider changes, a no until the next
        news. Raises TemporarilyUnavailableError.
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
        """The keys that tokens may be signed with, by `kid`, as of the last read. Thread-safe.

        Raises TemporarilyUnavailableError if a key changed and the keys could not be read since.
        """
        keys = self._keys
        if keys is None:
            raise TemporarilyUnavailableError
        return keys

    def held_state(self, jti: str) -> CachedToken | None:
        """The cached state of this token."""
        return self._states.get(jti)

    async def state(self, jti: str) -> CachedToken | None:
        """The state of this token, cached or loaded now; None if it was never issued here.

        Raises TemporarilyUnavailableError.
        """
        held = self._states.get(jti)
        if held is None:
            self._missed("token")
            held = await self._state_loads.get(jti)
        return held

    def _tell(self, news: StateNews) -> None:
        """Pass news on to the loop's thread. The watcher calls this in its own thread."""
        if self._looked.is_set():
            assert self._loop is not None
            self._loop.call_soon_threadsafe(self._hear, news)
        elif news.look is not None:
            # Before this is set there are no callers and nothing is cached, so this
            # thread may apply it.
            self._hear(news)
            self._looked.set()

    def _hear(self, news: StateNews) -> None:
        """Invalidate first, then update the state's age: at worst that causes a needless load."""
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
            # Expired tokens are not asked for any more, but would push valid ones out of the cache.
            now = timezone.now()
            self._states.drop_ended(lambda known: known.expires_at <= now, _MOST_ENDED)


def _authenticate(headers: Sequence[str]) -> dict[str, ServiceProvider | Exception]:
    read: dict[str, tuple[str, str]] = {}
    for header in headers:
        # Leave out a malformed header: it names no caller.
        with contextlib.suppress(InvalidClientError):
            read[header] = read_basic(header)
    found = zip(read, find_by_credentials(list(read.values())), strict=True)
    return {header: provider for header, provider in found if provider is not None}


def _rests_on(provider: ServiceProvider) -> tuple[int, ...]:
    return (hash(Change(Subject.SERVICE_PROVIDER, str(provider.pk))),)


def credentials_digest(header: str) -> bytes:
    """The cache key for the credentials in an `Authorization` header; keeps no secret in memory."""
    return sha256(header.encode(errors="surrogatepass"))
