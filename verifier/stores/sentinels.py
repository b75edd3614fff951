"""Asks Redis Sentinels which server is the primary now."""

from typing import Any, Final

from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from verifier.stores.redis_url import Address, RedisLocation

# Per Sentinel (s). One that does not answer must not delay a failover that the others know of.
SENTINEL_SECONDS: Final = 0.25


def find_primary(place: RedisLocation) -> Address:
    """The primary, by the first Sentinel that knows one and considers it up.

    Raises redis.exceptions.ConnectionError if there is none. It asks without a password first,
    since a Sentinel without one refuses a client that sends one.
    """
    password = {"username": place.user or None, "password": place.password}
    try:
        return _ask(place, {})
    except MasterNotFoundError:
        if not place.password:
            raise
    return _ask(place, password)


def _ask(place: RedisLocation, credentials: dict[str, Any]) -> Address:
    options = {
        "socket_timeout": SENTINEL_SECONDS,
        "socket_connect_timeout": SENTINEL_SECONDS,
        "ssl": place.tls,
        "retry": Retry(NoBackoff(), 0),
        **credentials,
    }
    sentinels = Sentinel(
        [(each.host, each.port) for each in place.addresses], sentinel_kwargs=options
    )  # type: ignore[no-untyped-call]  # the library's own
    try:
        host, port = sentinels.discover_master(place.primary)  # type: ignore[no-untyped-call]  # the library's own
    finally:
        for each in sentinels.sentinels:
            each.close()
    return Address(host, int(port))
