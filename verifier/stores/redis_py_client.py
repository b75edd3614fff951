"""A client of Redis for stream readers, probes and commands: redis-py. Decisions use `Servers`.

redis-py is used directly, not through django-redis, which supports no cluster and unpickles what it
reads.
"""

from typing import Any, Final

from django.conf import settings
from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.retry import Retry

from verifier.stores.redis_url import parse_redis_url
from verifier.stores.sentinels import find_primary

CLIENT_SECONDS: Final = 2.0


def sync_client(seconds: float = CLIENT_SECONDS) -> Redis | RedisCluster:
    """A new redis-py client of REDIS_URL, which returns bytes and retries nothing.

    Each call waits at most `seconds`. With Sentinels, it uses the current primary, and keeps it.
    Raises redis-py's errors. It does not check that a server is one the epoch began with;
    `Servers`, for decisions, does.
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
