"""Reads the database URL, which may name a primary and its replicas; only the primary is used."""

from typing import Any, Final
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

_PORT: Final = 5432
# No replica: decisions would rest on stale data.
_WRITING: Final = ("read-write", "primary")


def read_database_url(url: str) -> dict[str, Any]:
    """Django's configuration for `url`. Raises ImproperlyConfigured, without showing the URL.

    `url` is `postgres://role:password@host:port,host:port/name?option=value`, or `sqlite:///path`.
    Only a server that accepts writes is used, whether the URL says so or not, and even of a single
    host, whose name may come to mean another.
    """
    try:
        parts = urlsplit(url)
        user, at, places = parts.netloc.rpartition("@")
        several = places.split(",") if "," in places else []
        plain = parts._replace(netloc=f"{user}{at}several").geturl() if several else url
        config: dict[str, Any] = dict(dj_database_url.parse(plain))
        if several:
            hosts, ports = zip(*map(_place, several), strict=True)
            config |= {"HOST": ",".join(hosts), "PORT": ",".join(ports)}
    except ValueError:
        raise ImproperlyConfigured(
            "agentauth.E019: the URL of the database must be "
            "postgres://role:password@host:port/name (several hosts: host:port,host:port), with "
            "reserved characters in the password percent-encoded"
        ) from None
    if "postgresql" in config["ENGINE"]:
        config["OPTIONS"] = options = {"target_session_attrs": _WRITING[0]} | config.get(
            "OPTIONS", {}
        )
        if options["target_session_attrs"] not in _WRITING:
            raise ImproperlyConfigured(
                "agentauth.E019: the database must be writable: set target_session_attrs=read-write"
            )
    return config


def _place(text: str) -> tuple[str, str]:
    """Host and port of one server. Raises ValueError."""
    parts = urlsplit(f"//{text}")
    port = _PORT if parts.port is None else parts.port
    if not parts.hostname or not port:
        raise ValueError(text)
    return parts.hostname, str(port)
