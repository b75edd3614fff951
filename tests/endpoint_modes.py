"""Runs the same tests at the lean endpoint, or with the replay cache in Redis.

`pytest verifier/tests --endpoint lean --replay-cache redis`: both endpoints must answer alike and
both caches keep the same, so tests of `/v1/verify` and its sisters run again. Two differences are
bridged here: the endpoint polls the database before each call instead of twice a second, and events
waiting in Redis are drained after it. So tests need not wait, and time may stand still.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, cast

import pytest
from django.conf import settings
from django.db import DatabaseError, connections
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from kms.process_key_certificates import token_keys
from tests import conformance
from verifier.endpoint_paths import LEAN_PATHS
from verifier.models import Home, StateChange
from verifier.services import replay_cache_lease, replay_epochs, state_cache, verifier_process
from verifier.services.clock_readings import ClockReading
from verifier.services.state_change_feed import present_position, state_since
from verifier.services.state_watcher import StateNews, StateReading
from verifier.stores import redis_decisions, redis_probe, redis_servers
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_py_client import sync_client

# The modules of verifier/tests whose tests hold at either endpoint and with either replay cache.
# Others choose their endpoint or need none.
MODULES: Final = frozenset(
    [
        "batch",
        "certified_keys",
        "concurrency",
        "confirmation_lifecycle",
        "counters_outlive",
        "envelope",
        "replay_epochs",
        "failures",
        "introspection",
        "named_reads",
        "nonces",
        "operations",
        "presence_leases",
        "recorded_arguments",
        "verified_token_cache",
        "stored_answers",
        "requests",
        "token_and_proof",
        "two_grants",
        "unrecognised",
    ]
)

# Tests left out, by mode and prefix of the name, with the reason.
LEFT_OUT: Final[Mapping[str, Mapping[str, str]]] = {
    "lean": {
        "test_a_database_that_stays_away_is_not_asked_256_times": (
            "it counts what the view's pipeline tries"
        ),
        "test_a_call_that_still_runs_is_said_to": (
            "it fails statements of the connection that the test itself has"
        ),
        "test_sixteen_at_once_are_one_decision": "it asks the service and not the endpoint",
        "test_the_order_of_events_is_that_of_the_questions": (
            "of a batch, each grant's are in order, and no others"
        ),
    },
    "redis": {
        "test_a_fault_is_503_and_leaves_nothing": (
            "a proof spent in Redis stays spent: the agent must retry with a new proof"
        ),
        "test_503_is_never_stored_and_the_retry_is_judged_again": "the same",
        "test_a_refusal_whose_event_cannot_be_written_is_503": "the same",
        "test_EN_7_rate_further_ahead_is_not_moved_back": "it sets the rate in the database",
        "test_what_was_prepared_under_one_epoch": (
            "it counts how often the database's store looks at the lease"
        ),
    },
}


def split_items(
    config: pytest.Config, items: list[pytest.Item]
) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """The tests that run again in these modes, and those that do not."""
    ways = (config.getoption("--endpoint"), config.getoption("--replay-cache"))
    out = tuple(name for way in ways for name in LEFT_OUT.get(way, ()))
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        asks = item.path.stem.removeprefix("test_") in MODULES
        (kept if asks and not item.name.startswith(out) else left).append(item)
    return kept, left


_DRAINING: Final = threading.Lock()


class LeanResponse(HttpResponse):
    """The lean endpoint's response, with the `json` that Django's test client adds."""

    def json(self) -> Any:
        return json.loads(self.content)


class DrainingClient(Client):
    """Django's client; after each call it drains Redis into the log."""

    def request(self, **request: Any) -> Any:
        answer = super().request(**request)
        drain_redis_to_log()
        return answer


class LeanClient(Client):
    """Django's client; sends requests for the lean endpoint's paths to that endpoint."""

    endpoint: "RunningEndpoint"

    def request(self, **request: Any) -> Any:
        path = request["PATH_INFO"]
        if path not in LEAN_PATHS:
            return super().request(**request)
        body = request["wsgi.input"].read() if "wsgi.input" in request else b""
        method = request["REQUEST_METHOD"]
        names = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
        headers = [(b"host", b"localhost")]
        for name, value in request.items():
            if name.startswith("HTTP_") or name in names:
                sent = names.get(name, name[5:].lower().replace("_", "-").encode())
                headers.append((sent, str(value).encode("latin-1")))
        self.endpoint.look()
        answer = self.endpoint.ask(
            path, request.get("QUERY_STRING", ""), headers, body, method=method
        )
        if conformance.described(method, path):
            conformance.check(method, path, answer.status_code, answer.headers, answer.content)
        if settings.REDIS_URL:
            drain_redis_to_log()
        return answer


def drain_redis_to_log() -> None:
    """Drain the decisions in Redis into the log."""
    from verifier.services.decision_stream_drain import drain

    # One at a time: two drainers would skip each other's shards.
    with _DRAINING, sync_client() as client:
        drain(client, now=timezone.now())


class ManualWatcher:
    """Replaces the watcher thread: polls only on `look`, in the calling thread."""

    made: "list[ManualWatcher]" = []

    def __init__(self, tell: Callable[[StateNews], None]) -> None:
        self._tell = tell
        self._position: int | None = None
        self._newest: int | None = None
        self._seen: frozenset[int] = frozenset()
        self.made.append(self)

    def start(self) -> None:
        self.look()
        # `VerifierProcess.start` calls this in an executor's thread: no later call would use or
        # close its connection.
        connections.close_all()

    def stop(self, seconds: float) -> None:
        self.made.remove(self)

    def forget(self) -> None:
        """Forget the position: the next poll reports that everything may have changed."""
        self._position = None

    def look(self) -> None:
        """Poll as the watcher does. If the database does not answer, the state only gets older."""
        began = ClockReading.now()
        # Ignore an unavailable replay cache: the decision itself checks for it.
        with contextlib.suppress(DatabaseError, TemporarilyUnavailableError):
            replay_cache_lease.LEASE.current()
        with contextlib.suppress(DatabaseError):
            news = self._news()
            keys = token_keys(now=timezone.now())
            # The lease compares this host's clock with the database's, which moves with the tests'
            # clock.
            off = replay_cache_lease.LEASE._last and replay_cache_lease.LEASE._last.clock_off
            ahead = float(off.seconds_ahead) if off else 0.0
            self._tell(StateNews(news.changes, news.everything, StateReading(began, keys, ahead)))

    def _news(self) -> StateNews:
        newest = StateChange.objects.order_by("-id").values_list("id", flat=True).first()
        if self._position is None:
            news, self._position = StateNews(everything=True), present_position()
        elif newest == self._newest:
            # Report no change twice: each of several parallel calls would make the others reread.
            news = StateNews()
        else:
            feed = state_since(self._position, self._seen)
            self._seen = feed.seen
            news, self._position = (
                StateNews(feed.changes, everything=not feed.complete),
                feed.position,
            )
        self._newest = newest
        return news


class IdleEpochKeeper:
    """Replaces the epoch keeper's thread: tests move the replay cache themselves."""

    def start(self) -> None: ...
    def stop(self) -> None: ...


def scope(
    path: str, query: str, headers: list[tuple[bytes, bytes]], *, method: str = "POST"
) -> dict[str, Any]:
    """A request as the server passes it on (ASGI)."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 8000),
    }


class RunningEndpoint:
    """The endpoint in its own loop and thread."""

    def __init__(self) -> None:
        # It sets up Django, which pytest has already done.
        from agentauth.server.verifier_application import start
        from verifier.asgi_endpoint import Endpoint

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.app = Endpoint(start)
        self._from_server: asyncio.Queue[dict[str, Any]] = self._run(self._queue())
        self._to_server: asyncio.Queue[dict[str, Any]] = self._run(self._queue())
        self._living = asyncio.run_coroutine_threadsafe(self._live(), self._loop)
        self._turn("startup")

    @staticmethod
    async def _queue() -> asyncio.Queue[dict[str, Any]]:
        return asyncio.Queue()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _live(self) -> None:
        await self.app(
            {"type": "lifespan"}, self._from_server.get, cast("Any", self._to_server.put)
        )

    def _turn(self, what: str) -> None:
        self._run(self._from_server.put({"type": f"lifespan.{what}"}))
        told = self._run(self._to_server.get())
        assert told["type"] == f"lifespan.{what}.complete", told

    def forget(self) -> None:
        """Another test begins, with other rows."""
        for watcher in ManualWatcher.made:
            watcher.forget()

    def look(self) -> None:
        """Let the endpoint read the database now."""
        for watcher in ManualWatcher.made:
            watcher.look()
        self._run(asyncio.sleep(0))

    def ask(
        self,
        path: str,
        query: str,
        headers: list[tuple[bytes, bytes]],
        body: bytes,
        *,
        method: str = "POST",
    ) -> LeanResponse:
        """One request, as the server would pass it on."""
        asked = scope(path, query, headers, method=method)
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self._run(self.app(asked, receive, send))
        start, content = sent
        lines = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        lines.pop("content-length")
        return LeanResponse(content["body"], status=start["status"], headers=lines)

    def stop(self) -> None:
        self._turn("shutdown")
        self._living.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextlib.contextmanager
def run_endpoint(redis_url: str) -> Iterator[RunningEndpoint]:
    """An endpoint that may use this Redis, if given, as replay cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(settings, "REDIS_URL", redis_url)
        patch.setattr(state_cache, "Watcher", ManualWatcher)
        patch.setattr(verifier_process, "EpochKeeperThread", IdleEpochKeeper)
        made = RunningEndpoint()
        try:
            yield made
        finally:
            made.stop()


@contextlib.contextmanager
def use_redis_replay_cache(url: str) -> Iterator[None]:
    """Keep the replay cache in this Redis.

    Deadlines are 10 s, so that a slow test machine never misses one.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(redis_servers, "DEADLINE_SECONDS", 10.0)
        # Tests travel in time; Redis does not.
        patch.setattr(redis_decisions, "APART_US", 10**15)
        row, _ = replay_epochs.read_or_create_row()
        with pytest.MonkeyPatch.context() as asking:
            asking.setattr(settings, "REDIS_URL", url)
            asking.setattr(redis_probe, "PROBE_SECONDS", 10.0)
            probe = RedisProbe()
            probe.mark(row.epoch)
            Home.objects.update(kind=Home.Kind.REDIS, servers=sorted(probe.run_ids()))
        yield
