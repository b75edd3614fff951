"""The archive's format: names of objects, the manifest of a segment, and the line of an event."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from agentauth.protocol.encoding import b64u_decode, b64u_encode, canonical_json, read_object
from agentauth.protocol.errors import ChainError, EncodingError, InvalidRequestError
from agentauth.protocol.json_fields import integer, members, text
from agentauth.protocol.log_hashes import SALT_BYTES, canonical_entry_hash
from audit.log.event_encoding import MAX_LINE_BYTES
from audit.stores import MAX_OBJECT_BYTES, MAX_SMALL_BYTES, digest_of

VERSION: Final = 1
MANIFESTS: Final = "segments/"
_SHA256: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LINE: Final = re.compile(rb"(0|[1-9][0-9]{0,18}) ([A-Za-z0-9_-]{43}) (\{[^\n]*\})\n")
_MAX_NOTE: Final = 131_072


class ArchiveError(ChainError):
    """The archive contradicts the log, or the log changed since it was archived.

    `place` is the index of the first leaf in doubt.
    """

    def __init__(self, place: int, description: str) -> None:
        super().__init__(description)
        self.place = place


@dataclass(frozen=True, slots=True)
class StoredObject:
    """The key of an object, its SHA-256 in lower-case hex, and its length in bytes."""

    key: str
    sha256: str
    bytes: int

    @classmethod
    def of(cls, path: Path, kind: str) -> Self:
        """The entry for the file at `path`: `objects/<sha256>.<kind>`."""
        sha256 = digest_of(path).hex()
        return cls(f"objects/{sha256}.{kind}", sha256, path.stat().st_size)

    @classmethod
    def parse(cls, value: object, kind: str) -> Self:
        """Read the JSON form. Raises InvalidRequestError if it is malformed."""
        given = members(value, kind, required=("key", "sha256", "bytes"))
        sha256 = _sha256(given["sha256"])
        found = cls(
            text(given["key"], "key", maximum=128),
            sha256,
            integer(given["bytes"], "bytes", minimum=1, maximum=MAX_OBJECT_BYTES),
        )
        if found.key != f"objects/{sha256}.{kind}":
            raise InvalidRequestError("An object is not named by its digest.")
        return found


@dataclass(frozen=True, slots=True)
class Manifest:
    """A segment: leaves `first` ≤ index < `end`, and the signed note of a tree of `end` leaves."""

    origin: str
    first: int
    end: int
    previous: str | None
    checkpoint: str
    lines: StoredObject
    parquet: StoredObject

    def encode(self) -> bytes:
        """The only accepted encoding: RFC 8785."""
        return canonical_json(asdict(self) | {"version": VERSION})

    @classmethod
    def parse(cls, data: bytes, *, expected_first: int) -> Self:
        """Read that encoding. Raises ArchiveError for any other."""
        try:
            return cls._parse(data, expected_first)
        except (EncodingError, InvalidRequestError) as error:
            raise ArchiveError(
                expected_first,
                f"{manifest_key(expected_first)} is not a segment manifest: {error.description}",
            ) from error

    @classmethod
    def _parse(cls, data: bytes, first: int) -> Self:
        given = members(
            read_object(data, max_bytes=MAX_SMALL_BYTES),
            "manifest",
            required=(
                "version",
                "origin",
                "first",
                "end",
                "previous",
                "checkpoint",
                "lines",
                "parquet",
            ),
        )
        integer(given["version"], "version", minimum=VERSION, maximum=VERSION)
        previous = given["previous"]
        found = cls(
            origin=text(given["origin"], "origin", maximum=512),
            first=integer(given["first"], "first", minimum=first, maximum=first),
            end=integer(given["end"], "end", minimum=first + 1),
            previous=None if previous is None else _sha256(previous),
            checkpoint=text(given["checkpoint"], "checkpoint", maximum=_MAX_NOTE),
            lines=StoredObject.parse(given["lines"], "lines.gz"),
            parquet=StoredObject.parse(given["parquet"], "parquet"),
        )
        # The next manifest has the hash of these bytes, so a segment has one manifest.
        if found.encode() != data:
            raise InvalidRequestError("It is not in canonical form.")
        return found


@dataclass(frozen=True, slots=True)
class Line:
    """An archived event; `body` is its RFC 8785 encoding."""

    index: int
    salt: bytes
    body: bytes

    def encode(self) -> bytes:
        return b"%d %s %s\n" % (self.index, b64u_encode(self.salt).encode("ascii"), self.body)

    @property
    def entry(self) -> bytes:
        """The 32-byte log entry; its hash is the leaf hash."""
        return canonical_entry_hash(self.body, self.salt)

    def event(self) -> Mapping[str, Any]:
        """The event's JSON object. Raises ArchiveError if `body` is not valid JSON."""
        try:
            return read_object(self.body, max_bytes=MAX_LINE_BYTES)
        except EncodingError as error:
            raise ArchiveError(
                self.index, f"The event of leaf {self.index} is not JSON: {error.description}"
            ) from error

    @classmethod
    def parse(cls, raw: bytes, *, expected_index: int) -> Self:
        """Read one line, including its line feed. Raises ArchiveError if it is malformed."""
        found = _LINE.fullmatch(raw)
        if found is None or int(found[1]) != expected_index:
            raise ArchiveError(
                expected_index, f"The line of leaf {expected_index} is missing or malformed."
            )
        try:
            salt = b64u_decode(found[2].decode("ascii"))
        except EncodingError:
            salt = b""
        if len(salt) != SALT_BYTES:
            raise ArchiveError(expected_index, f"The salt of leaf {expected_index} is malformed.")
        return cls(expected_index, salt, found[3])


def manifest_key(first: int) -> str:
    """The key of the manifest; keys sort in the order of the segments."""
    return f"{MANIFESTS}{first:020d}.json"


def _sha256(value: object) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise InvalidRequestError("A digest must be SHA-256 in lower-case hex.")
    return value
