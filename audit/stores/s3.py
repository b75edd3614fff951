"""A store in an S3 bucket with Object Lock: not even we can replace or delete an object.

Only this module imports boto3. Error messages are written here, since texts of the library or the
server may quote parts of a signed request. Credentials come from the AWS libraries' usual places,
never from a URI.
"""

import base64
import functools
import itertools
import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Self

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.stores import (
    CHUNK_BYTES,
    MAX_OBJECT_BYTES,
    Digest,
    ImmutableError,
    Sink,
    check_key,
    digest_of,
    small,
)
from audit.stores.store_uri_checks import read_bucket

CONNECT_SECONDS: Final = 5
READ_SECONDS: Final = 60
# For a whole object; up to READ_SECONDS more if a read is waiting at the end.
FETCH_SECONDS: Final = 600
ATTEMPTS: Final = 2
_A_MOMENT: Final = 0.001
# The key exists, or another process is writing it now.
_THERE: Final = {"PreconditionFailed", "ConditionalRequestConflict"}
_NO_LOCK: Final = {"ObjectLockConfigurationNotFoundError", "InvalidBucketState"}

# At DEBUG these log whole requests with their signatures and session tokens.
for _name in ("boto3", "botocore", "s3transfer"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class S3Store:
    """Objects below a prefix of one bucket; of each key, only the first version counts.

    In a bucket with Object Lock, an attacker can add a later version or a delete marker, but cannot
    remove the first version. Reading the first one defeats that.
    """

    def __init__(
        self, *, bucket: str, prefix: str, endpoint: str | None, region: str | None, lock_days: int
    ) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._endpoint, self._region = endpoint, region
        self._lock = timedelta(days=lock_days)

    @classmethod
    def at(cls, uri: str) -> Self:
        """`s3://bucket[/prefix][?endpoint=…&region=…&lock_days=…]`. Raises InvalidRequestError."""
        bucket = read_bucket(uri)
        return cls(
            bucket=bucket.name,
            prefix=bucket.prefix,
            endpoint=bucket.endpoint,
            region=bucket.region,
            lock_days=bucket.lock_days,
        )

    def __repr__(self) -> str:
        return f"s3://{self._bucket}/{self._prefix}"

    def put_once(self, key: str, data: bytes | Path) -> None:
        digest = digest_of(data)
        self.require_lock()
        try:
            with (
                _available(self),
                data.open("rb") if isinstance(data, Path) else nullcontext(data) as body,
            ):
                self._client.put_object(
                    Bucket=self._bucket,
                    Key=self._prefix + check_key(key),
                    Body=body,
                    IfNoneMatch="*",
                    ChecksumSHA256=base64.b64encode(digest).decode("ascii"),
                    ObjectLockMode="COMPLIANCE",
                    ObjectLockRetainUntilDate=datetime.now(UTC) + self._lock,
                )
        except _TakenError:
            self._refuse_other(key, digest)

    def get(self, key: str) -> bytes | None:
        return small(self, key)

    def fetch(self, key: str, into: Sink) -> bool:
        return self._fetch(key, into) is not None

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        # List versions, not objects: a delete marker hides an object, but not its versions.
        versions = self._versions(
            self._prefix + prefix, after=self._prefix + after if after else ""
        )
        for key, _ in itertools.groupby(versions, key=lambda version: str(version["Key"])):
            if key > self._prefix + after:
                yield key.removeprefix(self._prefix)

    @functools.cached_property
    def _client(self) -> Any:
        with _available(self):
            return boto3.session.Session().client(
                "s3",
                endpoint_url=self._endpoint,
                region_name=self._region,
                config=Config(
                    signature_version="s3v4",
                    connect_timeout=CONNECT_SECONDS,
                    read_timeout=READ_SECONDS,
                    retries={"mode": "standard", "total_max_attempts": ATTEMPTS},
                    s3={"addressing_style": "path" if self._endpoint else "auto"},
                    # put_once sends its own checksum.
                    request_checksum_calculation="when_required",
                ),
            )

    def _fetch(self, key: str, into: Sink) -> str | None:
        """As `fetch`; returns the object's lock mode, "" without a lock, None if it is missing."""
        full = self._prefix + check_key(key)
        same = itertools.takewhile(lambda version: version["Key"] == full, self._versions(full))
        # Versions are listed newest first.
        first = None
        for first in same:  # noqa: B007 — keep the last one
            pass
        if first is None:
            return None
        with _available(self):
            found = self._client.get_object(
                Bucket=self._bucket, Key=full, VersionId=first["VersionId"], ChecksumMode="ENABLED"
            )
            with closing(found["Body"]) as body:
                _copy(body, into, key)
        return str(found.get("ObjectLockMode", ""))

    def _versions(self, prefix: str, *, after: str = "") -> Iterator[Any]:
        pages = iter(
            self._client.get_paginator("list_object_versions").paginate(
                Bucket=self._bucket, Prefix=prefix, **({"KeyMarker": after} if after else {})
            )
        )
        while True:
            with _available(self):
                page = next(pages, None)
            if page is None:
                return
            yield from page.get("Versions", ())

    def _refuse_other(self, key: str, wanted: bytes) -> None:
        there = Digest()
        mode = self._fetch(key, there)
        if mode is None:
            # The other process has not finished writing.
            raise TemporarilyUnavailableError(
                f"{key} is just being written to {self!r} by another process."
            )
        if there.sha256() != wanted:
            raise ImmutableError(f"{key} exists in {self!r} with other content.")
        if mode != "COMPLIANCE":
            raise ImmutableError(
                f"{key} exists in {self!r} without a lock: this registry did not write it."
            )

    @functools.cached_property
    def _locks(self) -> bool:
        try:
            with _available(self):
                answer = self._client.get_object_lock_configuration(Bucket=self._bucket)
        except _NoLockError:
            return False
        return bool(answer.get("ObjectLockConfiguration", {}).get("ObjectLockEnabled") == "Enabled")

    def require_lock(self) -> None:
        """Raises ImmutableError if the bucket has no Object Lock."""
        if not self._locks:
            # Do not cache a negative answer: Object Lock can be enabled later.
            self.__dict__.pop("_locks", None)
            raise ImmutableError(
                f"The bucket {self._bucket} has no Object Lock, so what is written there "
                "could be changed. Make one "
                "with Object Lock enabled."
            )


class _TakenError(TemporarilyUnavailableError):
    """The key already has an object."""


class _NoLockError(TemporarilyUnavailableError):
    """The bucket has no Object Lock."""


def _copy(body: Any, into: Sink, key: str) -> None:
    """Write an answer's body to `into`, within FETCH_SECONDS and MAX_OBJECT_BYTES."""
    end, length = time.monotonic() + FETCH_SECONDS, 0
    # A read returns only when the whole chunk has arrived, and the read timeout applies to each
    # byte, so a server that sends a byte now and then would block it for ever. After FETCH_SECONDS
    # the timer sets the socket timeout to a millisecond: the next byte that has not arrived yet
    # fails the read.
    hurry = threading.Timer(FETCH_SECONDS, _wait_no_more, [body])
    hurry.daemon = True
    hurry.start()
    try:
        while chunk := body.read(CHUNK_BYTES):
            length += len(chunk)
            if length > MAX_OBJECT_BYTES:
                raise ImmutableError(
                    f"{key} in the store is larger than any object that the log writes."
                )
            if time.monotonic() > end:
                raise TimeoutError
            into.write(chunk)
    finally:
        hurry.cancel()


def _wait_no_more(body: Any) -> None:
    # The body may be fully read by now, and have no socket.
    with suppress(AttributeError):
        body.set_socket_timeout(_A_MOMENT)


@contextmanager
def _available(store: S3Store) -> Iterator[None]:
    """Turn the library's errors into ours, without text or traceback, which may hold secrets."""
    try:
        yield
    except ClientError as error:
        code = re.sub(r"[^A-Za-z0-9]", "", str(error.response.get("Error", {}).get("Code", "")))[
            :64
        ]
    except (BotoCoreError, ResponseParserError, OSError, LookupError, TypeError) as error:
        # LookupError and TypeError: the answer is not S3's and lacks something the library or we
        # expect.
        code = type(error).__name__
    else:
        return
    if code in _THERE:
        raise _TakenError from None
    if code in _NO_LOCK:
        raise _NoLockError from None
    raise TemporarilyUnavailableError(
        f"The log's store {store!r} refused or failed: {code}."
    ) from None
