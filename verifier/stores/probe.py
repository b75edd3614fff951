"""Looks at Redis from outside a call: which servers there are, and whether they still know the epoch."""

from collections.abc import Iterator
from contextlib import contextmanager

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import RedisClusterException, RedisError
from redis.retry import Retry

SHARDS = 16
# For connecting and for each answer. A server that is slower than this is no home for a verifier that answers in ms.
_TIMEOUT_SECONDS = 0.5


class ServersAwayError(Exception):
    """Redis, or one of the servers that hold its keys, does not answer."""


class RedisProbe:
    """`verifier.services.keeper.Probe` over redis-py. `url` is `redis://host:port`, for a cluster with a comma between hosts."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: Redis | RedisCluster | None = None

    def run_ids(self) -> frozenset[str]:
        with self._asked() as client:
            if isinstance(client, RedisCluster):
                nodes = client.get_primaries()  # type: ignore[no-untyped-call]  # the library's own
                told = [client.info("server", target_nodes=node) for node in nodes]
            else:
                told = [client.info("server")]
        return frozenset(str(each["run_id"]) for each in told)

    def mark(self, epoch: int) -> None:
        with self._asked() as client:
            for shard in range(SHARDS):
                client.delete(f"aa:{{{shard:02}}}:count")
                client.set(f"aa:{{{shard:02}}}:epoch", str(epoch))

    def marked(self, epoch: int) -> bool:
        with self._asked() as client:
            kept = {client.get(f"aa:{{{shard:02}}}:epoch") for shard in range(SHARDS)}
        return kept == {str(epoch).encode()}

    @contextmanager
    def _asked(self) -> Iterator[Redis | RedisCluster]:
        try:
            if self._client is None:
                self._client = _connected(self._url)
            yield self._client
        except (RedisError, RedisClusterException, OSError) as error:
            # A cluster may have other nodes by now: found out anew next time.
            if self._client is not None:
                self._client.close()
            self._client = None
            raise ServersAwayError(str(error)) from error


def _connected(url: str) -> Redis | RedisCluster:
    scheme, _, rest = url.partition("://")
    credentials, at, hosts = rest.rpartition("@")
    first, *others = hosts.rstrip("/").split(",")
    limits = {"socket_timeout": _TIMEOUT_SECONDS, "socket_connect_timeout": _TIMEOUT_SECONDS}
    if not others:
        return Redis.from_url(url, **limits, retry=Retry(NoBackoff(), 0))
    nodes = [_node(each) for each in others]
    return RedisCluster.from_url(f"{scheme}://{credentials}{at}{first}", startup_nodes=nodes, **limits)


def _node(address: str) -> ClusterNode:
    host, _, port = address.rpartition(":")
    return ClusterNode(host, int(port))  # type: ignore[no-untyped-call]  # the library's own
