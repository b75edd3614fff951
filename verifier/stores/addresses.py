"""Which Redis servers REDIS_URL names: one, or some of a cluster."""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from django.core.exceptions import ImproperlyConfigured

_URL: Final = re.compile(
    r"(?P<scheme>rediss?)://"
    r"(?:(?P<user>[^:@/]*)(?::(?P<password>[^@/]*))?@)?"
    r"(?P<servers>[^@/?#]+)"
    r"(?:/(?P<database>\d{0,4}))?"
)
_SERVER: Final = re.compile(r"(?:\[(?P<v6>[0-9a-fA-F:.]+)\]|(?P<host>[^:\[\]\s]+))(?::(?P<port>\d{1,5}))?")
_LAST_PORT: Final = 65535


@dataclass(frozen=True, slots=True)
class Address:
    """One server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Place:
    """What REDIS_URL says. Several addresses are a cluster, any of whose nodes may be missing among them."""

    addresses: tuple[Address, ...]
    tls: bool
    user: str
    password: str
    database: int

    @property
    def cluster(self) -> bool:
        """Whether the keys are shared out over several servers."""
        return len(self.addresses) > 1


def parse_redis_url(url: str) -> Place:
    """Read `redis[s]://[user[:password]@]host[:port][,host[:port]…][/database]`; user and password percent-encoded.

    Raises ImproperlyConfigured, without the URL: it holds a password.
    """
    match = _URL.fullmatch(url)
    servers = [] if match is None else [_SERVER.fullmatch(each) for each in match["servers"].split(",")]
    addresses = tuple(
        Address(each["v6"] or each["host"], int(each["port"] or 6379)) for each in servers if each is not None
    )
    if (
        match is None
        or len(set(addresses)) != len(servers)
        or any(not 0 < each.port <= _LAST_PORT for each in addresses)
    ):
        raise ImproperlyConfigured(
            "REDIS_URL must be redis://host:port or rediss://user:password@host:port, of a cluster host:port,host:port,…"
        )
    database = int(match["database"] or 0)
    if database and len(addresses) > 1:
        raise ImproperlyConfigured("REDIS_URL: a cluster has one database, 0.")
    return Place(
        addresses=addresses,
        tls=match["scheme"] == "rediss",
        user=unquote(match["user"] or ""),
        password=unquote(match["password"] or ""),
        database=database,
    )
