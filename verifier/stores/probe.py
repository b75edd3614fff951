"""Looks at Redis from outside a call: which servers there are, and whether they still know the epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError

from verifier.stores.node import IDENTIFY, EvictingServerError, RedisAwayError, identity
from verifier.stores.scripts import (
    MARK,
    MARKER,
    SHARDS,
    Code,
    absent_key,
    count_key,
    epoch_key,
    read_reply,
)
from verifier.stores.sync_connection import sync_client

# A server that hangs must not keep a keeper from a replica that took over.
PROBE_SECONDS: Final = 0.5


class ServersAwayError(Exception):
    """Redis, or one of the servers that hold its keys, does not answer; or not as it must. `reason` is the word for the event."""

    reason = "away"


class EvictingServersError(ServersAwayError):
    """One of them may drop keys to save memory: it may have forgotten spent proofs already."""

    reason = "evicting"


class RefusingServersError(ServersAwayError):
    """One of them refuses the user or the password."""


class RedisProbe:
    """`verifier.services.keeper.Probe` of the servers REDIS_URL names."""

    def __init__(self) -> None:
        self._client: Redis | RedisCluster | None = None

    def run_ids(self) -> frozenset[str]:
        with self._asked() as client:
            if isinstance(client, RedisCluster):
                nodes = client.get_primaries()  # type: ignore[no-untyped-call]  # the library's own
                told = [client.info(*IDENTIFY[1:], target_nodes=node) for node in nodes]
            else:
                told = [client.info(*IDENTIFY[1:])]
        try:
            return frozenset(map(identity, told))
        except EvictingServerError as error:
            raise EvictingServersError(error.why) from error
        except RedisAwayError as error:
            raise ServersAwayError(error.why) from error

    def times(self) -> list[datetime]:
        with self._asked() as client:
            if isinstance(client, RedisCluster):
                nodes = client.get_primaries()  # type: ignore[no-untyped-call]  # the library's own
                told = [client.time(target_nodes=node) for node in nodes]
            else:
                told = [client.time()]
        return [datetime.fromtimestamp(seconds + micros / 1e6, UTC) for seconds, micros in told]

    def mark(self, epoch: int) -> None:
        with self._asked() as client:
            mark = client.register_script(MARK.source)
            for shard in range(SHARDS):
                reply = read_reply(mark(keys=[epoch_key(shard), count_key(shard)], args=[epoch]))
                if reply.code is not Code.OK:
                    # Another registry's, or ours from before its database was restored.
                    raise ServersAwayError(f"Redis was marked with a later epoch, {reply.number}: empty it.")

    def marked(self, epoch: int) -> bool:
        return self._marks() == {str(epoch).encode()}

    def latest_mark(self) -> int:
        """The latest epoch that any shard was marked with; 0 where none was."""
        return max((int(mark) for mark in self._marks() if mark is not None), default=0)

    def _marks(self) -> set[bytes | str | None]:
        with self._asked() as client:
            marker = client.register_script(MARKER.source)
            return {marker(keys=[epoch_key(shard), absent_key(shard)]) for shard in range(SHARDS)}

    @contextmanager
    def _asked(self) -> Iterator[Redis | RedisCluster]:
        try:
            if self._client is None:
                self._client = sync_client(PROBE_SECONDS)
            yield self._client
        except (RedisError, RedisClusterException, OSError) as error:
            # A cluster may have other nodes by now: found out anew next time.
            if self._client is not None:
                self._client.close()
            self._client = None
            kind = RefusingServersError if isinstance(error, AuthenticationError) else ServersAwayError
            raise kind(str(error)) from error
