"""What the head of a request says to the lean endpoint, read once for as long as a connection sends the same one."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from django.conf import settings
from django.http.request import split_domain_port, validate_host

from verifier.accept import takes_json
from verifier.services.following import credentials_digest

Scope = Mapping[str, Any]

# The largest body that any caller may send, a batch of questions.
MAX_BATCH_BYTES: Final = 1024 * 1024
# The header lines that are looked at here; of each there may be one.
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
    """What a request's head says to the endpoint. `headers` are the lines of `_READ`, none where a name stands twice.

    It is kept for later requests, which may have another Content-Length, as plain, and another Idempotency-Key: `key_at`
    is where that stands among the lines. `reads_body`: it has a plain length of no more than any caller may send. `authorization` is there in the plain form
    only: no query, what we accept, our host, over TLS where that is asked for. `credentials` are the same in any form, with
    their `digest`; None without an Authorization line, and where there are two.
    """

    headers: Mapping[bytes, bytes]
    reads_body: bool
    authorization: str | None
    credentials: str | None
    digest: bytes
    key_at: int | None


def head_of(scope: Scope, *, https_only: bool) -> Head:
    # What our server keeps for as long as a connection sends the same head.
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
    # Seven digits are as many as the longest body's length has, and as Python is asked to read.
    plain_length = length.isdigit() and len(length) <= len(str(MAX_BATCH_BYTES))
    reads_body = b"transfer-encoding" not in headers and plain_length and int(length) <= MAX_BATCH_BYTES
    keys = [place for place, (name, _) in enumerate(scope["headers"]) if name == b"idempotency-key"]
    plain = plain and len(keys) <= 1
    presented = [value for name, value in scope["headers"] if name == b"authorization"]
    credentials = presented[0].decode("latin-1") if len(presented) == 1 else None
    if not plain:
        # Two lines of a name that is read here: in the Django view they are one, and refused.
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
    """Whether the Host header names us; a foreign one is refused by Django."""
    domain, _ = split_domain_port(header.decode("latin-1"))
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def _came_by_https(scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
    said = headers.get(b"x-forwarded-proto") if settings.TRUSTED_PROXIES else None
    return scope["scheme"] == "https" or said == b"https"
