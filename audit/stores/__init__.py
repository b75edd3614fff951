"""Where copies of the log stand outside the database: write-once stores, each behind the same four calls.

A store is named by a URI whose scheme names its kind; another kind is another module here and one line in `store_at`.
A put that was reported as failed may have been stored: repeated, it succeeds where the same bytes are there.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Final, Protocol

from agentauth.protocol.errors import ChainError, InvalidRequestError

# What `get` reads into memory; files go through `fetch`.
MAX_SMALL_BYTES: Final = 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
# No object is larger: a segment of 65,536 events is some 25 MB.
MAX_OBJECT_BYTES: Final = 1024 * 1024 * 1024
_PART: Final = r"[a-z0-9_-][a-z0-9._-]{0,127}"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")


class ImmutableError(ChainError):
    """Under a key that is written once stands something else. Nothing overwrites it, and nobody passes it over."""


class Sink(Protocol):
    """What bytes can be written to: a file, a digest, a decompressor."""

    def write(self, data: bytes, /) -> object: ...


class Store(Protocol):
    """Keys are relative paths of lower-case letters, digits and `._-`. All calls raise TemporarilyUnavailableError.

    Its message, like everything else a store says of itself, holds no credentials.
    """

    def put_once(self, key: str, data: bytes | Path) -> None:
        """Keep bytes, or those of a file, durably before returning; the same bytes again change nothing.

        Raises ImmutableError where other bytes stand there.
        """

    def get(self, key: str) -> bytes | None:
        """What was first written there, up to MAX_SMALL_BYTES; None where nothing was. Raises ImmutableError for more."""

    def fetch(self, key: str, into: Sink) -> bool:
        """The same, up to MAX_OBJECT_BYTES, written to `into`; False where nothing is. Raises ImmutableError for more."""

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """Every key that begins with `prefix` and comes after `after`, in the order of their bytes."""


def store_at(uri: str) -> Store:
    """The store that `file:<path>` or `s3://<bucket>[/<prefix>][?…]` names. Raises InvalidRequestError for another URI.

    Nothing is asked of it until it is used.
    """
    return _opened(uri)


@lru_cache(maxsize=8)
def _opened(uri: str) -> Store:
    scheme, _, rest = uri.partition(":")
    if scheme == "file" and rest:
        from audit.stores.folder import FolderStore

        return FolderStore(Path(rest))
    if scheme == "s3":
        # Late: whoever keeps the log in a folder needs no library for it.
        from audit.stores.s3 import S3Store

        return S3Store.at(uri)
    raise InvalidRequestError("A store of the log is file:<path> or s3://<bucket>/<prefix>.")


def is_key(key: str) -> bool:
    """Whether an object may stand under this key. Others may stand in a store, and are none of ours."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """The key as it is. Raises ValueError where it is none: keys are made by us, never by a caller."""
    if not is_key(key):
        raise ValueError(f"not a key of the log's store: {key!r}")
    return key


def digest_of(data: bytes | Path) -> bytes:
    """SHA-256 of bytes or of a file, 32 bytes; a file is read in pieces."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).digest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class Digest:
    """Keeps nothing of what is written to it but its SHA-256 and its length in bytes."""

    def __init__(self) -> None:
        self._hash, self.length = hashlib.sha256(), 0

    def write(self, data: bytes, /) -> None:
        self._hash.update(data)
        self.length += len(data)

    def sha256(self) -> bytes:
        return self._hash.digest()


def small(store: Store, key: str) -> bytes | None:
    """`Store.get` by way of `Store.fetch`."""
    into = _Bounded(key)
    return bytes(into.kept) if store.fetch(key, into) else None


class _Bounded:
    def __init__(self, key: str) -> None:
        self._key, self.kept = key, bytearray()

    def write(self, data: bytes, /) -> None:
        if len(self.kept) + len(data) > MAX_SMALL_BYTES:
            raise ImmutableError(f"{self._key} in the store is larger than anything written there.")
        self.kept += data
