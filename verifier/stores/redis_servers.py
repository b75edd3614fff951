"""The verifier's Redis for one event loop: a single server, a Sentinel primary or a cluster."""

import asyncio
import binascii
import ssl
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final

from hiredis import ReplyError
from redis.exceptions import RedisError

from verifier.stores.lua_scripts import Script
from verifier.stores.redis_client import ForgetfulServerError, Node, RedisAwayError, pack
from verifier.stores.redis_keys import SHARDS, tag_of
from verifier.stores.redis_url import Address, parse_redis_url
from verifier.stores.sentinels import find_primary

__all__ = ["ForgetfulServerError", "RedisAwayError", "Servers"]

# How long one verification waits for Redis (s).
DEADLINE_SECONDS: Final = 0.05
# After a failure, the slot map is fetched again at most this often (s).
RELEARN_SECONDS: Final = 0.25
_SLOTS: Final = 16384
# Redis Cluster's hash slot of each shard's hash tag.
SLOT_OF_SHARD: Final = tuple(binascii.crc_hqx(tag_of(shard), 0) % _SLOTS for shard in range(SHARDS))


class Servers:
    """The servers that REDIS_URL names. Connections are opened on demand and reopened when lost.

    `expected_runs` returns the run ids that the current epoch began with (empty: any). A restarted
    server has a new run id and has forgotten spent proofs, so `evaluate` does not use it.
    """

    def __init__(
        self, url: str, *, expected_runs: Callable[[], frozenset[str]] = frozenset
    ) -> None:
        self._place = parse_redis_url(url)
        self._expected_runs = expected_runs
        # Created once: it loads every CA certificate of the system.
        self._tls = ssl.create_default_context() if self._place.tls else None
        self._nodes: dict[Address, Node] = {}
        # The server of each shard, or None. Empty until the cluster or the Sentinels were asked.
        self._shards: list[Node | None] = []
        # All primaries of the last slot map: any of them can return the next one.
        self._primaries: list[Node] = []
        self._learning: asyncio.Task[None] | None = None
        self._learned_at = float("-inf")
        if not self._place.is_moving:
            [only] = self._place.addresses
            self._serve_all(self._node(only))

    def evaluate(
        self,
        script: Script,
        shard: int,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        *,
        deadline: float | None = None,
    ) -> Coroutine[Any, Any, Any]:
        """Run a script on the shard's server; return its raw answer within `deadline` seconds, or
        DEADLINE_SECONDS.

        Raises RedisAwayError: the script may have run, so the caller must not be told yes. Raises
        its subclass ForgetfulServerError if the server is not one of `expected_runs`. A script that
        may have run is not retried.
        """
        within = DEADLINE_SECONDS if deadline is None else deadline
        return self._evaluate(script, shard, keys, args, within, self._expected_runs())

    def close(self) -> None:
        """Close every connection."""
        if self._learning is not None:
            self._learning.cancel()
        for node in self._nodes.values():
            node.close()

    async def _evaluate(
        self,
        script: Script,
        shard: int,
        keys: Sequence[bytes],
        args: Sequence[bytes | str | int],
        deadline: float,
        expected: frozenset[str],
    ) -> Any:
        now = asyncio.get_running_loop().time()
        due = now + deadline
        command = pack((b"EVALSHA", script.sha1, len(keys), *keys, *args))
        if not self._shards:
            await self._learn(due)
        try:
            node = self._serving(shard)
            line = node.known_line(expected, now)
            if line is None:
                reply = await node.ask(command, due, expected=expected)
            else:
                reply = await line.ask(command, due)
                node.check_line(line, expected)
        except RedisAwayError:
            self._doubt()
            raise
        if isinstance(reply, ReplyError):
            return await self._again(reply, node, script, shard, command, due, expected)
        return reply

    async def _again(
        self,
        error: ReplyError,
        node: Node,
        script: Script,
        shard: int,
        command: bytes,
        due: float,
        expected: frozenset[str],
    ) -> Any:
        """Retry a call that did not run: the script was not loaded, or its slot has moved."""
        code = str(error).partition(" ")[0]
        if code == "NOSCRIPT":
            await node.ask(pack(("SCRIPT", "LOAD", script.source)), due)
        elif code == "MOVED" and self._place.cluster:
            node = self._shards[shard] = self._moved_to(error, node)
            self._start_learning(node)
        else:
            self._doubt()
            raise node.refusal_error(error)
        reply = await node.ask(command, due, expected=expected)
        if isinstance(reply, ReplyError):
            raise node.refusal_error(reply)
        return reply

    def _serving(self, shard: int) -> Node:
        node = self._shards[shard]
        if node is None:
            raise RedisAwayError("no server serves the shard")
        return node

    # Which server serves what.

    def _doubt(self) -> None:
        """After a failure, ask in the background whether another server has the shard by now."""
        now = asyncio.get_running_loop().time()
        if self._place.is_moving and now - self._learned_at >= RELEARN_SECONDS:
            self._start_learning(None)

    async def _learn(self, due: float) -> None:
        """Wait until the servers of the shards are known.

        Raises RedisAwayError. Callers share one query.
        """
        learning = self._start_learning(None)
        await asyncio.wait([learning], timeout=max(due - asyncio.get_running_loop().time(), 0))
        if not learning.done() or learning.cancelled():
            raise RedisAwayError("no server said in time which server serves which shard")
        learning.result()

    def _start_learning(self, first: Node | None) -> asyncio.Task[None]:
        if self._learning is None:
            self._learned_at = asyncio.get_running_loop().time()
            learn = self._ask_sentinels() if self._place.primary else self._ask_for_slots(first)
            self._learning = asyncio.create_task(learn)
            self._learning.add_done_callback(self._was_learned)
        return self._learning

    def _was_learned(self, learning: asyncio.Task[None]) -> None:
        self._learning = None
        if not learning.cancelled():
            # Retrieved so that asyncio does not log it; the callers that waited got it.
            learning.exception()

    async def _ask_sentinels(self) -> None:
        try:
            address = await asyncio.to_thread(find_primary, self._place)
        except RedisError as error:
            raise RedisAwayError(f"no Sentinel names a primary: {error}") from error
        self._serve_all(self._node(address))

    def _serve_all(self, node: Node) -> None:
        self._primaries, self._shards = [node], [node] * SHARDS

    async def _ask_for_slots(self, first: Node | None) -> None:
        named = [self._node(address) for address in self._place.addresses]
        nodes = [*([first] if first else []), *self._primaries, *named, *self._nodes.values()]
        for node in dict.fromkeys(nodes):
            due = asyncio.get_running_loop().time() + RELEARN_SECONDS
            try:
                ranges = await node.ask(pack(("CLUSTER", "SLOTS")), due)
            except RedisAwayError:
                continue
            if isinstance(ranges, list) and ranges:
                self._read_slots(ranges, node)
                return
        raise RedisAwayError("no cluster node returned the slot map")

    def _read_slots(self, ranges: list[Any], told_by: Node) -> None:
        """`ranges` as CLUSTER SLOTS has them: [first, last, [host, port, …] (primary), …]."""
        served: list[Node | None] = [None] * SHARDS
        primaries: dict[Node, None] = {}
        for first, last, (host, port, *_), *_replicas in ranges:
            # An empty host means the node that answered.
            node = self._node(Address(host.decode() if host else told_by.address.host, port))
            primaries[node] = None
            for shard, slot in enumerate(SLOT_OF_SHARD):
                if first <= slot <= last:
                    served[shard] = node
        self._shards, self._primaries = served, list(primaries)

    def _moved_to(self, error: ReplyError, told_by: Node) -> Node:
        """The node in a `MOVED slot host:port` error."""
        host, _, port = str(error).split(" ")[2].rpartition(":")
        return self._node(Address(host or told_by.address.host, int(port)))

    def _node(self, address: Address) -> Node:
        if address not in self._nodes:
            self._nodes[address] = Node(self._place, address, self._tls)
        return self._nodes[address]
