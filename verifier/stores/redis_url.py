"""Parses REDIS_URL: one Redis server, a cluster, or the Sentinels that know the primary."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from django.core.exceptions import ImproperlyConfigured

_URL: Final = re.compile(
    r"(?P<scheme>rediss?)(?P<sentinel>\+sentinel)?://"
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<servers>[^@/?#]+)"
    r"(?:/(?P<primary>[A-Za-z][A-Za-z0-9._-]{0,63}))?"
    r"(?:/(?P<database>\d{0,4}))?"
)
_SERVER: Final = re.compile(
    r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]\s]+))(?::(?P<port>\d{1,5}))?"
)
_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """The host and port of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class RedisLocation:
    """The parsed REDIS_URL.

    Several addresses are those of a cluster: it tells a client about its other nodes, so not all
    need to be here. If `primary` is set, the addresses are the Sentinels', which know the primary
    by this name.
    """

    addresses: tuple[Address, ...]
    tls: bool
    user: str
    password: str
    database: int
    primary: str = ""

    @property
    def cluster(self) -> bool:
        """Whether the keys are spread over several servers."""
        return len(self.addresses) > 1 and not self.primary

    @property
    def is_moving(self) -> bool:
        """Whether keys can move to another server, so that a client must ask which one has them."""
        return self.cluster or bool(self.primary)


def parse_redis_url(url: str) -> RedisLocation:
    """Parse `redis[s]://[[user]:password@]host[:port][,host[:port]…][/database]`.

    User and password are percent-encoded. With Sentinels:
    `redis[s]+sentinel://[[user]:password@]host[:port][,…]/name-of-the-primary[/database]`.
    The servers, and the Sentinels if they require it, are given this user and password.

    Raises ImproperlyConfigured, without the URL, since it holds a password.
    """
    match = _URL.fullmatch(url)
    servers = (
        [] if match is None else [_SERVER.fullmatch(each) for each in match["servers"].split(",")]
    )
    port = 26379 if match and match["sentinel"] else 6379
    addresses = tuple(
        Address(each["v6"] or each["host"], int(each["port"] or port))
        for each in servers
        if each is not None
    )
    if (
        match is None
        or bool(match["sentinel"]) != bool(match["primary"])
        or len(addresses) != len(servers)
    ):
        raise ImproperlyConfigured(
            "REDIS_URL must be redis://[user:password@]host:port[/database] for one server, "
            "redis://[user:password@]host:port,host:port for a cluster, or "
            "redis+sentinel://[user:password@]host:port,host:port/name-of-the-primary[/database]. "
            "For TLS write rediss instead of redis. Percent-encode @, /, : and % in user and "
            "password."
        )
    if match["user"] is not None and not match["password"]:
        raise ImproperlyConfigured(
            "REDIS_URL has no password before the @: write user:password@, or neither."
        )
    if not all(0 < each.port <= _LAST_PORT for each in addresses):
        raise ImproperlyConfigured(f"REDIS_URL: a port must be from 1 to {_LAST_PORT}.")
    if len(set(addresses)) != len(addresses):
        raise ImproperlyConfigured("REDIS_URL names a server twice.")
    database = int(match["database"] or 0)
    if database and len(addresses) > 1 and not match["sentinel"]:
        raise ImproperlyConfigured("REDIS_URL: a cluster has one database, 0.")
    return RedisLocation(
        addresses=addresses,
        tls=match["scheme"] == "rediss",
        user=unquote(match["user"] or ""),
        password=unquote(match["password"] or ""),
        database=database,
        primary=match["primary"] or "",
    )
