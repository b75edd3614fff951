"""Probes Redis outside of calls: which servers there are, and if they still know the epoch."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final

from redis import Redis
from redis.cluster import RedisCluster
from redis.exceptions import AuthenticationError, RedisClusterException, RedisError

from verifier.stores import redis_owner
from verifier.stores.lua_scripts import MARK, MARKER, Code, read_reply
from verifier.stores.redis_client import IDENTIFY, EvictingServerError, RedisAwayError, identity
from verifier.stores.redis_keys import SHARDS, absent_key, count_key, epoch_key
from verifier.stores.redis_py_client import sync_client

# Short, so that a hanging server does not keep the epoch keeper from a promoted replica.
PROBE_SECONDS: Final = 0.5


class ServersAwayError(Exception):
    """A Redis server does not answer, or not as it must. `reason` is the event's reason."""

    reason = "away"


class EvictingServersError(ServersAwayError):
    """A server may drop keys to save memory, so it may have forgotten spent proofs already."""

    reason = "evicting"


class RefusingServersError(ServersAwayError):
    """A server refuses the user or the password."""


class OtherRegistryError(ServersAwayError):
    """Redis belongs to another registry."""

    reason = "other_registry"


class RedisProbe:
    """`verifier.services.replay_epoch_keeper.Probe` of the servers that REDIS_URL names."""

    def __init__(self) -> None:
        self._client: Redis | RedisCluster | None = None

    def run_ids(self) -> frozenset[str]:
        with self._asking() as client:
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
        with self._asking() as client:
            if isinstance(client, RedisCluster):
                nodes = client.get_primaries()  # type: ignore[no-untyped-call]  # the library's own
                told = [client.time(target_nodes=node) for node in nodes]
            else:
                told = [client.time()]
        return [datetime.fromtimestamp(seconds + micros / 1e6, UTC) for seconds, micros in told]

    def claim(self) -> None:
        with self._asking() as client:
            wrong = redis_owner.claim(client)
        if wrong:
            raise OtherRegistryError(wrong)

    def check_owner(self) -> None:
        """As `claim`, but writes nothing."""
        with self._asking() as client:
            wrong = redis_owner.other_registry(client)
        if wrong:
            raise OtherRegistryError(wrong)

    def mark(self, epoch: int) -> None:
        with self._asking() as client:
            mark = client.register_script(MARK.source)
            for shard in range(SHARDS):
                reply = read_reply(mark(keys=[epoch_key(shard), count_key(shard)], args=[epoch]))
                if reply.code is not Code.OK:
                    # Ours, from before its database was restored.
                    raise ServersAwayError(
                        f"Redis has the mark of a later epoch, {reply.number}, than this database: "
                        "empty it, if no other registry uses it"
                    )

    def is_marked(self, epoch: int) -> bool:
        return self._marks() == {str(epoch).encode()}

    def latest_mark(self) -> int:
        """The latest epoch marked in any shard; 0 if none is."""
        return max((int(mark) for mark in self._marks() if mark is not None), default=0)

    def _marks(self) -> set[bytes | str | None]:
        with self._asking() as client:
            marker = client.register_script(MARKER.source)
            return {marker(keys=[epoch_key(shard), absent_key(shard)]) for shard in range(SHARDS)}

    @contextmanager
    def _asking(self) -> Iterator[Redis | RedisCluster]:
        try:
            if self._client is None:
                self._client = sync_client(PROBE_SECONDS)
            yield self._client
        except (RedisError, RedisClusterException, OSError) as error:
            # The cluster may have changed: a new client discovers its nodes next time.
            if self._client is not None:
                self._client.close()
            self._client = None
            kind = (
                RefusingServersError if isinstance(error, AuthenticationError) else ServersAwayError
            )
            raise kind(str(error)) from error
