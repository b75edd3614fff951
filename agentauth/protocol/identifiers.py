"""Identifiers: UUID version 7, made from a time and entropy that the caller passes in.

Reads no clock and no random source. `audit.new_ids` does, and makes the ids of rows.
"""

import re
import uuid

from .errors import EncodingError

ENTROPY_BYTES = 10
_MAX_MS = (1 << 48) - 1
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def uuid7_text(unix_ms: int, entropy: bytes) -> str:
    """Make a UUIDv7 (RFC 9562 section 5.7) from milliseconds since 1970 and exactly 10 bytes of
    entropy, of which 74 bits are used.

    Ids sort by creation time, so inserts touch few index pages. They are names, never secrets: the
    time is readable in them, and RFC 9562 section 8 forbids their use as capabilities. Raises
    EncodingError.
    """
    if not 0 <= unix_ms <= _MAX_MS:
        raise EncodingError("An identifier's time must be 0 to 2^48 - 1 ms since 1970.")
    if len(entropy) != ENTROPY_BYTES:
        raise EncodingError("An identifier needs 10 bytes of entropy.")
    random = int.from_bytes(entropy, "big")
    high = (random >> 62) & 0xFFF
    low = random & ((1 << 62) - 1)
    digits = (
        ((unix_ms << 80) | (7 << 76) | (high << 64) | (0b10 << 62) | low).to_bytes(16, "big").hex()
    )
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_id(value: object) -> bool:
    """Whether `value` is a lower-case UUIDv7 text (docs/protocol.md section 0).

    `uuid.UUID()` also takes braces, capitals and `urn:uuid:`: one object would have several names,
    and a comparison of texts would not find it.
    """
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def parse_id(text: str) -> uuid.UUID:
    """Parse an identifier. Raises ValueError unless `is_id` holds."""
    if not is_id(text):
        raise ValueError("not a lower-case UUIDv7")
    return uuid.UUID(text)
