"""Parses request heads for the lean endpoint, once per connection while its head stays the same."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from verifier.json_accept_check import takes_json
from verifier.services.state_cache import credentials_digest

Scope = Mapping[str, Any]

# The largest body that any caller may send: a batch.
MAX_BATCH_BYTES: Final = 1024 * 1024
# The headers that are read here; each may occur once.
_READ: Final = frozenset(
    {
        b"host",
        b"accept",
        b"authorization",
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"x-forwarded-proto",
    }
)


@dataclass(frozen=True, slots=True)
class Head:
    """A parsed request head. `headers` are those of `_READ`, empty if a name occurs twice.

    It is reused for later requests of the connection, whose Content-Length and Idempotency-Key may
    differ; `key_at` is the index of the Idempotency-Key line. `reads_body`: the length is plain
    digits and at most MAX_BATCH_BYTES. `authorization` is set only for a plain request: no query,
    acceptable Accept and Host headers, and TLS if required. `credentials` is the same header for
    any request, with its `digest`; None if there is no Authorization line or more than one.
    """

    headers: Mapping[bytes, bytes]
    reads_body: bool
    authorization: str | None
    credentials: str | None
    digest: bytes
    key_at: int | None


def head_of(scope: Scope, *, https_only: bool) -> Head:
    # Our server keeps this dictionary while the connection sends the same head.
    kept = scope.get("extensions", {}).get("agentauth.head", {})
    head: Head | None = kept.get("endpoint")
    if head is None:
        head = kept["endpoint"] = _read_head(scope, https_only=https_only)
    return head


def _read_head(scope: Scope, *, https_only: bool) -> Head:
    headers: dict[bytes, bytes] = {}
    plain = True
    for name, value in scope["headers"]:
        if name in _READ:
            plain = plain and name not in headers
            headers[name] = value
    length = headers.get(b"content-length", b"0")
    # At most seven digits, as the largest body's length has, so that `int` never
    # parses a long number.
    plain_length = length.isdigit() and len(length) <= len(str(MAX_BATCH_BYTES))
    reads_body = (
        b"transfer-encoding" not in headers and plain_length and int(length) <= MAX_BATCH_BYTES
    )
    keys = [place for place, (name, _) in enumerate(scope["headers"]) if name == b"idempotency-key"]
    plain = plain and len(keys) <= 1
    presented = [value for name, value in scope["headers"] if name == b"authorization"]
    credentials = presented[0].decode("latin-1") if len(presented) == 1 else None
    if not plain:
        # A header that occurs twice: Django joins the two, and the view refuses the request.
        headers = {}
    authorization = headers.get(b"authorization", b"").decode("latin-1")
    in_order = (
        not scope["query_string"]
        and authorization
        and takes_json(headers.get(b"accept"))
        and is_our_host(headers.get(b"host", b""))
        and (not https_only or _came_by_https(scope, headers))
    )
    return Head(
        headers,
        reads_body,
        authorization if in_order else None,
        credentials,
        credentials_digest(credentials or ""),
        keys[0] if keys else None,
    )


@lru_cache(maxsize=64)
def is_our_host(header: bytes) -> bool:
    """Whether the Host header names us. Django refuses any other."""
    domain, _ = split_domain_port(header.decode("latin-1"))
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def _came_by_https(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    said = headers.get(b"x-forwarded-proto") if settings.TRUSTED_PROXIES else None
    return scope["scheme"] == "https" or said == b"https"
