"""What reverse proxies report of the client: believed from TRUSTED_PROXIES hops, no others."""

import ipaddress
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.http.response import HttpResponseBase

UNKNOWN = "unknown"
# A household or host has a whole /64 of IPv6 addresses to itself: count it as one client.
IPV6_PREFIX = 64


class ForwardedMiddleware:
    """Sets `request.client_address`, and removes what a client claims about its own scheme."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        hops = settings.TRUSTED_PROXIES
        request.client_address = client_address(request.META, hops=hops)  # type: ignore[attr-defined]  # our own attribute
        said = request.META.pop("HTTP_X_FORWARDED_PROTO", "")
        # Unlike X-Forwarded-For, proxies often replace this header instead of adding to it.
        if scheme := _nth_from_the_right(said, min(hops, said.count(",") + 1)):
            request.META["HTTP_X_FORWARDED_PROTO"] = scheme
        return self.get_response(request)


def client_address(meta: Mapping[str, Any], *, hops: int) -> str:
    """The address that the outermost of our `hops` proxies saw (IPv6: its /64), else the peer's.

    Each proxy appends the address it saw to X-Forwarded-For. What a client wrote itself stands
    further left than `hops` and is never read: it could name any address.
    """
    heard = _nth_from_the_right(meta.get("HTTP_X_FORWARDED_FOR", ""), hops)
    return _network(heard) or _network(meta.get("REMOTE_ADDR", "")) or UNKNOWN


def address_of(request: Any) -> str:
    """The client's address as the rate limits count it."""
    return str(getattr(request, "client_address", UNKNOWN))


def _nth_from_the_right(header: str, number: int) -> str:
    parts = [part.strip() for part in header.split(",")]
    return parts[-number] if 0 < number <= len(parts) else ""


# Cached: callers repeat, and parsing an address is slow compared with the rest of a request.
@lru_cache(maxsize=4096)
def _network(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address.packed, IPV6_PREFIX), strict=False))
    return str(address)
