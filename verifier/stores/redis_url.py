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

    Several addresses are seeds of a cluster, not necessarily all its nodes. With `primary`, the
    name by which Sentinels know it, the addresses are the Sentinels'.
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
    def moves(self) -> bool:
        """Whether the current server of a key must be asked for."""
        return self.cluster or bool(self.primary)


def parse_redis_url(url: str) -> RedisLocation:
    """Parse `redis[s]://[user[:password]@]host[:port][,host[:port]…][/database]`.

    User and password are percent-encoded. With Sentinels:
    `redis[s]+sentinel://[user[:password]@]host[:port][,…]/name-of-the-primary[/database]`.
    User and password are the servers', and the Sentinels' too if these ask for them.

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
        or len(set(addresses)) != len(servers)
        or any(not 0 < each.port <= _LAST_PORT for each in addresses)
    ):
        raise ImproperlyConfigured(
            "REDIS_URL must be redis://host:port or rediss://user:password@host:port, of a "
            "cluster host:port,host:port,…,"
            " of Sentinels redis+sentinel://host:port,host:port/name-of-the-primary"
        )
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
