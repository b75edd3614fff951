"""The URIs that AUDIT_STORE accepts, and the package of each store, checked at startup.

Imports no library of a store.
"""

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, urlsplit

from agentauth.protocol.errors import InvalidRequestError
from audit.optional_packages import Package
from audit.stores import check_key

DEFAULT_LOCK_DAYS: Final = 2_190
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_LOCK_DAYS: Final = 36_500
_OPTIONS: Final = {"endpoint", "lock_days", "region"}
_LOOPBACK: Final = {"127.0.0.1", "::1", "localhost"}
_BOTO3: Final = Package("boto3", "boto3")


@dataclass(frozen=True, slots=True)
class Bucket:
    """An S3 bucket and its options; `prefix` is empty or ends with a slash."""

    name: str
    prefix: str
    endpoint: str | None
    region: str | None
    lock_days: int


def store_error(uri: str) -> str:
    """What is wrong with a store's URI, in one line, or "". Does not contact the store."""
    scheme, _, rest = uri.partition(":")
    if scheme == "file" and rest:
        return ""
    if scheme != "s3":
        return "A store of the log must be file:<path> or s3://<bucket>/<prefix>."
    try:
        read_bucket(uri)
    except InvalidRequestError as error:
        return error.description
    return ""


def package_error(uri: str, *, needed_by: str) -> str:
    """Which package the store of a URI lacks, in one line, or ""."""
    return _BOTO3.missing(needed_by) if uri.startswith("s3:") else ""


def read_bucket(uri: str) -> Bucket:
    """`s3://bucket[/prefix][?endpoint=…&region=…&lock_days=…]`. Raises InvalidRequestError."""
    try:
        parts = urlsplit(uri)
        given = parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        prefix = parts.path.strip("/")
        if (
            not _BUCKET.fullmatch(parts.netloc)
            or parts.fragment
            or not given.keys() <= _OPTIONS
            or any(len(values) != 1 for values in given.values())
        ):
            raise ValueError("not of that form")  # noqa: TRY301 — one place says what is wrong
        options = {name: value for name, [value] in given.items()}
        lock_days = int(options.get("lock_days", DEFAULT_LOCK_DAYS))
        if not 1 <= lock_days <= _MAX_LOCK_DAYS or not _safe(options.get("endpoint")):
            raise ValueError("not to be used")  # noqa: TRY301 — as above
        return Bucket(
            name=parts.netloc,
            prefix=f"{check_key(prefix)}/" if prefix else "",
            endpoint=options.get("endpoint"),
            region=options.get("region"),
            lock_days=lock_days,
        )
    except ValueError:
        raise InvalidRequestError(
            "A bucket for the log must be s3://bucket/prefix without credentials. If needed, add "
            "endpoint= (https, or on this host), region= and lock_days= after a question mark."
        ) from None


def _safe(endpoint: str | None) -> bool:
    """Whether the endpoint is an origin without credentials, reached by https or on this host."""
    if endpoint is None:
        return True
    parts = urlsplit(endpoint)
    return (
        (parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK))
        and bool(parts.hostname)
        and "@" not in parts.netloc
        and parts.path in {"", "/"}
        and not parts.query
        and not parts.fragment
    )
