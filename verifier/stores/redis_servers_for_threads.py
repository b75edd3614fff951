"""`redis_servers` for threads: the verifications of the web server share one event loop."""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from verifier.stores.lua_scripts import Script
from verifier.stores.redis_servers import Servers

_T = TypeVar("_T")


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
