"""Write-once stores for copies of the log outside the database; all have the same four methods.

The scheme of a store's URI names its kind; a new kind is a module here and a branch in
`store_factory`. A put that failed may have been stored nevertheless: a retry with the same bytes
succeeds.
"""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from agentauth.protocol.errors import ChainError

# The most that `get` reads into memory; larger objects are read with `fetch`.
MAX_SMALL_BYTES: Final = 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024
# The largest object: far above a segment, which has some 25 MB for 65,536 events.
MAX_OBJECT_BYTES: Final = 1024 * 1024 * 1024
_PART: Final = r"[a-z0-9_-][a-z0-9._-]{0,127}"
_KEY: Final = re.compile(rf"{_PART}(?:/{_PART}){{0,15}}")


class ImmutableError(ChainError):
    """A write-once key holds other content. Never overwrite it; callers must not ignore this."""


class Sink(Protocol):
    """Anything bytes can be written to: a file, a digest, a decompressor."""

    def write(self, data: bytes, /) -> object: ...


class Store(Protocol):
    """Keys are relative paths of lower-case letters, digits and `._-`.

    All methods raise TemporarilyUnavailableError if the store does not answer. Its message and the
    store's repr hold no credentials.
    """

    def put_once(self, key: str, data: bytes | Path) -> None:
        """Store bytes, or a file's content, durably before returning. A repeat changes nothing.

        Raises ImmutableError if the key holds other bytes.
        """

    def get(self, key: str) -> bytes | None:
        """The bytes first written under the key; None if there are none.

        Raises ImmutableError for more than MAX_SMALL_BYTES.
        """

    def fetch(self, key: str, into: Sink) -> bool:
        """As `get`, but writes the bytes to `into`; False if there are none.

        Raises ImmutableError for more than MAX_OBJECT_BYTES.
        """

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        """Every key that begins with `prefix` and sorts after `after`, in byte order."""


def is_key(key: str) -> bool:
    """Whether the log could have written this key; a store may also hold foreign objects."""
    return _KEY.fullmatch(key) is not None


def check_key(key: str) -> str:
    """Return the key. Raises ValueError if it is invalid: our code makes keys, never a client."""
    if not is_key(key):
        raise ValueError(f"not a key of the log's store: {key!r}")
    return key


def digest_of(data: bytes | Path) -> bytes:
    """SHA-256 (32 bytes) of bytes or of a file, which is read in chunks."""
    if isinstance(data, bytes):
        return hashlib.sha256(data).digest()
    with data.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


class Digest:
    """A sink that keeps only the SHA-256 and the length in bytes."""

    def __init__(self) -> None:
        self._hash, self.length = hashlib.sha256(), 0

    def write(self, data: bytes, /) -> None:
        self._hash.update(data)
        self.length += len(data)

    def sha256(self) -> bytes:
        return self._hash.digest()


def small(store: Store, key: str) -> bytes | None:
    """`Store.get` implemented with `Store.fetch`."""
    into = _Bounded(key)
    return bytes(into.kept) if store.fetch(key, into) else None


class _Bounded:
    def __init__(self, key: str) -> None:
        self._key, self.kept = key, bytearray()

    def write(self, data: bytes, /) -> None:
        if len(self.kept) + len(data) > MAX_SMALL_BYTES:
            raise ImmutableError(
                f"{self._key} in the store is larger than any object that the log writes."
            )
        self.kept += data
