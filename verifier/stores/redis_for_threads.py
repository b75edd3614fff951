"""Redis for threads: verifications use one shared event loop, everything else uses redis-py.

redis-py is used directly, not through django-redis, which supports no cluster and unpickles what it
reads.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, TypeVar

from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from verifier.stores.lua_scripts import Script
from verifier.stores.redis_servers import Servers
from verifier.stores.redis_url import parse_redis_url
from verifier.stores.sentinels import find_primary

# For stream readers and commands, not for verifications.
CLIENT_SECONDS: Final = 2.0

_T = TypeVar("_T")


def sync_client(seconds: float = CLIENT_SECONDS) -> Redis | RedisCluster:
    """A new redis-py client of REDIS_URL, which returns bytes and retries nothing.

    Each call waits at most `seconds`. With Sentinels, it uses the current primary, and keeps it.
    Raises redis-py's errors. It does not check that a server is one the epoch began with;
    `SyncServers`, for decisions, does.
    """
    place = parse_redis_url(settings.REDIS_URL)
    options: dict[str, Any] = {
        "username": place.user or None,
        "password": place.password or None,
        "ssl": place.tls,
        "socket_timeout": seconds,
        "socket_connect_timeout": seconds,
        "client_name": "agentauth",
        "decode_responses": False,
        "retry": Retry(NoBackoff(), 0),
    }
    if place.cluster:
        nodes = [
            ClusterNode(each.host, each.port)  # type: ignore[no-untyped-call]
            for each in place.addresses
        ]
        # The constructor asks the first node for its commands; the retry lets it ask another node.
        client = RedisCluster(startup_nodes=nodes, **options | {"retry": Retry(NoBackoff(), 1)})
        client.retry = options["retry"]
        return client
    [only] = [find_primary(place)] if place.primary else place.addresses
    return Redis(host=only.host, port=only.port, db=place.database, **options)


class SyncServers:
    """`Servers` for threads: all calls share its connections, checks and pauses after failures.

    Its loop runs in its own thread, which the first call starts; after a fork the child starts its
    own.
    """

    def __init__(
        self, url: str, *, expected_runs: Callable[[], frozenset[str]] = frozenset
    ) -> None:
        self._url, self._expected_runs = url, expected_runs
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: Servers | None = None
        self._pid = 0

    def evaluate(
        self,
        script: Script,
        shard: int,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        *,
        deadline: float | None = None,
    ) -> Any:
        """As `Servers.evaluate`, with the same errors."""
        return self._run(
            lambda servers: servers.evaluate(script, shard, keys, args, deadline=deadline)
        )

    def close(self) -> None:
        """Close the connections and end the thread; the next call starts a new one."""
        with self._lock:
            loop, servers, mine = self._loop, self._servers, self._pid == os.getpid()
            self._loop = self._servers = None
        if loop is not None and servers is not None and mine:
            loop.call_soon_threadsafe(servers.close)
            loop.call_soon_threadsafe(loop.stop)

    def _run(self, work: Callable[[Servers], Coroutine[Any, Any, _T]]) -> _T:
        loop, servers = self._ensure_started()
        return asyncio.run_coroutine_threadsafe(work(servers), loop).result()

    def _ensure_started(self) -> tuple[asyncio.AbstractEventLoop, Servers]:
        with self._lock:
            if self._loop is None or self._servers is None or self._pid != os.getpid():
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._servers = Servers(self._url, expected_runs=self._expected_runs)
                threading.Thread(
                    target=_serve, args=(self._loop,), name="verifier-redis", daemon=True
                ).start()
            return self._loop, self._servers


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
        # One more turn, so that dropped connections are closed.
        loop.run_until_complete(asyncio.sleep(0))
    finally:
        loop.close()
