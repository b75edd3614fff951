"""Canonical bytes and text: base64url, canonical JSON, strict JSON, times.

No signatures and no domain rules.
"""

import binascii
import hashlib
import json
import math
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NoReturn

import rfc8785

from .errors import EncodingError

MAX_BODY_BYTES = 65_536
MAX_DEPTH = 32
# Above this, a reader that keeps numbers as IEEE doubles loses digits (RFC 8259 section 6): two
# implementations would see two different amounts under one signature.
MAX_INTEGER = 2**53 - 1
_MAX_INTEGER_DIGITS = len(str(MAX_INTEGER)) + 1  # and a sign

# binascii reads only the standard alphabet, so `-` and `_` are mapped to `+` and `/`. Every other
# character passes through and fails the check in `b64u_decode`.
_TO_STANDARD = bytes.maketrans(b"-_", b"+/")
_FROM_STANDARD = bytes.maketrans(b"+/", b"-_")
_JSON_SPACE = " \t\n\r"
# Matches runs of plain characters at once: one at a time would double the time to read a batch.
_STRINGS = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
_BRACKETS = re.compile(r"[\[\]{}]")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII)


def sha256(data: bytes) -> bytes:
    """SHA-256, the only hash of this protocol: 32 bytes."""
    return hashlib.sha256(data).digest()


def b64u_encode(data: bytes) -> str:
    """Base64url without padding (RFC 7515 section 2)."""
    return _b64u(data).decode("ascii")


def _b64u(data: bytes) -> bytes:
    return binascii.b2a_base64(data, newline=False).rstrip(b"=").translate(_FROM_STANDARD)


def b64u_decode(text: str) -> bytes:
    """Decode canonical base64url: no padding, no other alphabet, trailing bits zero.

    Raises EncodingError. With a lenient reader one signature would have many spellings, and so many
    cache keys, `ath` values and log entries for the same bytes (docs/protocol.md section 1).
    """
    try:
        raw = text.encode("ascii")
        data = binascii.a2b_base64(raw.translate(_TO_STANDARD) + b"=" * (-len(raw) % 4))
    except (UnicodeEncodeError, binascii.Error, ValueError, AttributeError):
        raise EncodingError("A value is not base64url.") from None
    # The standard decoder skips characters outside its alphabet. Encoding again catches all of it:
    # padding, white space, "+", "/" and non-zero trailing bits come back different.
    if _b64u(data) != raw:
        raise EncodingError("A value is not canonical base64url.")
    return data


def b64_encode(data: bytes) -> str:
    """Standard base64 with padding (RFC 4648 section 4), as in notes and log proofs."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def b64_decode(text: str) -> bytes:
    """Decode canonical standard base64: padded, no white space, trailing bits zero.

    Raises EncodingError.
    """
    try:
        data = binascii.a2b_base64(text.encode("ascii"))
    except (UnicodeEncodeError, binascii.Error, AttributeError):
        raise EncodingError("A value is not base64.") from None
    if b64_encode(data) != text:
        raise EncodingError("A value is not canonical base64.")
    return data


def canonical_json(value: object) -> bytes:
    """RFC 8785 bytes of `value`: dicts with text keys, lists, tuples, text, booleans, None, and
    integers within ±(2^53 − 1).

    Raises EncodingError for anything else. RFC 8785 defines floats, but no statement, event or
    manifest of ours has one: a float here is a mistake about to be signed.
    """
    if _is_plain(value):
        # For these types the standard library writes the same bytes, many times faster: ASCII names
        # sort the same in UTF-16 (RFC 8785 section 3.2.3) and in Unicode, and both escape the same
        # characters alike.
        try:
            text = _ENCODE(value)
            # Also matches an escaped backslash before "u0000"; then the exact path below decides.
            if "\\u0000" not in text:
                return text.encode()
        except (UnicodeError, RecursionError, ValueError):
            raise EncodingError("A value has no canonical JSON form.") from None
    for part in _walk(value):
        if isinstance(part, float):
            raise EncodingError("A number with a fraction cannot be signed.")
        if isinstance(part, str):
            _check_text(part)
    try:
        # Its type names only JSON shapes; it raises on others.
        return rfc8785.dumps(value)  # type: ignore[arg-type]
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError, TypeError, ValueError):
        raise EncodingError("A value has no canonical JSON form.") from None


def read_json(
    data: bytes | bytearray | memoryview | str,
    *,
    max_bytes: int = MAX_BODY_BYTES,
) -> object:
    """Read one JSON text that every strict reader understands in the same way.

    `max_bytes` counts UTF-8 bytes. Refuses what other readers accept: more than MAX_DEPTH nested
    arrays and objects, a byte order mark, duplicate member names, NaN and Infinity (also a float
    that overflows), lone surrogates, NUL in text, integers beyond ±(2^53 − 1). Floats are returned
    as float: the caller decides whether one is allowed. Raises EncodingError.
    """
    text = _decode(data, max_bytes)
    # Count first: the usual body has few brackets and skips the exact scan. The check must precede
    # parsing, because the parser recurses: on a deep stack it would raise where no caller expects
    # it. (`in` is ten times as fast as `count` where there are none.)
    if text.count("{") + ("[" in text and text.count("[")) > MAX_DEPTH:
        _check_depth(text)
    try:
        # The decoder's `decode` finds white space with two regular expressions; this takes half its
        # time.
        text = text.strip(_JSON_SPACE)
        value, end = _DECODER.raw_decode(text)
    except EncodingError:
        raise
    except (ValueError, RecursionError):
        raise EncodingError("The text is not JSON.") from None
    if end != len(text):
        raise EncodingError("The text is not JSON.")
    # Only a \u escape can produce a surrogate or a NUL: UTF-8 and the JSON grammar exclude both.
    if "\\" in text and "\\u" in text:
        for part in _walk(value):
            if isinstance(part, str):
                _check_text(part)
    return value


def read_object(
    data: bytes | bytearray | memoryview | str,
    *,
    max_bytes: int = MAX_BODY_BYTES,
) -> dict[str, object]:
    """`read_json` for a JSON object. Raises EncodingError."""
    value = read_json(data, max_bytes=max_bytes)
    if not isinstance(value, dict):
        raise EncodingError("The text must be a JSON object.")
    return value


def timestamp(at: datetime) -> str:
    """RFC 3339 in UTC with `Z`: no fraction if the microseconds are zero, else exactly six digits.

    One instant has one spelling, because times are hashed into events and signed in statements.
    Raises EncodingError for a naive datetime: guessing its zone could move a deadline by hours.
    """
    if at.tzinfo is None:
        raise EncodingError("A time must have a time zone.")
    # isoformat() omits the fraction if it is zero.
    return at.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"


def parse_timestamp(text: object) -> datetime:
    """Read RFC 3339 in UTC: `2026-01-31T09:30:00Z`, at most six digits of fraction.

    Offsets and lower-case letters are refused (docs/protocol.md section 0 requires `Z`). One
    instant still has several texts here (`.5Z`, `.500000Z`): where a text is signed, compare it
    with `timestamp(parse_timestamp(text))`. Raises EncodingError.
    """
    if not isinstance(text, str) or not _TIMESTAMP.fullmatch(text):
        raise EncodingError("A time must look like 2026-01-31T09:30:00Z.")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise EncodingError("A time is not a valid date and time.") from None


def _decode(data: bytes | bytearray | memoryview | str, max_bytes: int) -> str:
    if isinstance(data, str):
        # A character is at least one byte, so a long text is refused before it is encoded to
        # measure it.
        if len(data) > max_bytes or (not data.isascii() and _utf8_length(data) > max_bytes):
            raise EncodingError("The text is too long.")
        return data
    if len(data) > max_bytes:
        raise EncodingError("The text is too long.")
    try:
        return str(data, "utf-8")
    except UnicodeDecodeError:
        raise EncodingError("The text is not UTF-8.") from None


def _utf8_length(text: str) -> int:
    try:
        return len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise EncodingError("A text contains half of a surrogate pair.") from None


def _check_text(text: str) -> None:
    # PostgreSQL cannot store NUL, and C readers stop at it.
    if "\0" in text:
        raise EncodingError("A text contains a NUL character.")
    if not text.isascii():
        _utf8_length(text)


def _check_depth(text: str) -> None:
    depth = 0
    # Without escapes every second piece between quotation marks is a string; removing them this way
    # is five times as fast.
    bare = _STRINGS.sub("", text) if "\\" in text else "".join(text.split('"')[::2])
    for bracket in _BRACKETS.findall(bare):
        if bracket in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise EncodingError(f"The JSON is nested more than {MAX_DEPTH} levels deep.")
        else:
            depth -= 1


def _is_plain(value: object) -> bool:
    """Whether it holds only text, booleans, None, integers within ±MAX_INTEGER, lists, and dicts
    with ASCII names.
    """
    stack = [value]
    while stack:
        part = stack.pop()
        if type(part) is dict:
            for name, member in part.items():
                if type(name) is not str or not name.isascii():
                    return False
                if type(member) is not str:
                    stack.append(member)
        elif type(part) is list:
            stack.extend(part)
        elif type(part) is int:
            if not -MAX_INTEGER <= part <= MAX_INTEGER:
                return False
        elif type(part) is not str and type(part) is not bool and part is not None:
            return False
    return True


def _walk(value: object) -> Iterator[object]:
    """Yield every scalar and member name.

    An explicit stack, so that depth costs memory, not recursion.
    """
    stack = [value]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            stack.extend(part)
            stack.extend(part.values())
        elif isinstance(part, list | tuple):
            stack.extend(part)
        else:
            yield part


def _members(pairs: list[tuple[str, object]]) -> dict[str, object]:
    members = dict(pairs)
    # Readers differ in which of two equal names wins: the code that checks and the code that acts
    # would see different requests (RFC 8259 section 4).
    if len(members) != len(pairs):
        raise EncodingError("A JSON object names a member twice.")
    return members


def _integer(digits: str) -> int:
    # Length first: converting a million digits takes quadratic time.
    if len(digits) > _MAX_INTEGER_DIGITS or abs(number := int(digits)) > MAX_INTEGER:
        raise EncodingError("An integer's magnitude must be below 2^53.")
    return number


def _fraction(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise EncodingError("A number is too large.")
    return number


def _constant(_name: str) -> NoReturn:
    raise EncodingError("NaN and Infinity are not JSON.")


# Built once: json.loads with hooks makes a new decoder and scanner on each call.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_members, parse_int=_integer, parse_float=_fraction, parse_constant=_constant
)
_ENCODE = json.JSONEncoder(
    ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode
