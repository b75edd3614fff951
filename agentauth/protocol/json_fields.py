"""Strict reading of parsed JSON: exact members, exact types, errors that name the place.

Bytes become values in `encoding.py`; the callers of these functions decide what the values mean.
"""

import re
from collections.abc import Collection
from typing import Final

from .errors import InvalidRequestError

# A double holds every integer below 2^53 exactly; beyond it two JSON readers may see two numbers.
INTEGER_LIMIT: Final = 2**53
_SHOWN: Final = 40
# RFC 8785 cannot encode a lone surrogate, and PostgreSQL cannot store NUL: refuse both on input.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def quote_safely(value: str) -> str:
    """Make a caller's string safe for an error message: ASCII, short, quoted.

    Short because an error body stays below 1 kB for any input, escaped because messages reach
    terminals and logs.
    """
    return ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")


def members(
    obj: object, where: str, *, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, object]:
    """Return `obj`, a JSON object with every member of `required` and none outside the two lists.

    Raises InvalidRequestError naming `where` (docs/protocol.md section 0: unknown members are
    refused).
    """
    if not isinstance(obj, dict):
        raise InvalidRequestError(f"{where}: must be a JSON object.")
    for name in obj:
        # An unknown member may be a limit its sender relies on: to ignore it would widen what was
        # asked.
        if not isinstance(name, str) or (name not in required and name not in optional):
            raise InvalidRequestError(f"{where}: the member {quote_safely(str(name))} is unknown.")
    for name in required:
        if name not in obj:
            raise InvalidRequestError(f"{where}.{name}: is missing.")
    return obj


def text(obj: object, where: str, *, maximum: int, minimum: int = 1) -> str:
    """Return `obj`, a string of `minimum` to `maximum` code points that stores and encoders can
    hold.

    Raises InvalidRequestError naming `where`.
    """
    if type(obj) is str and minimum <= len(obj) <= maximum and obj.isascii() and "\0" not in obj:
        # Fast path for most strings; the code below finds what is wrong with the others.
        return obj
    if not isinstance(obj, str):
        raise InvalidRequestError(f"{where}: must be a string.")
    if not minimum <= len(obj) <= maximum:
        raise InvalidRequestError(f"{where}: must be {minimum} to {maximum} characters long.")
    if _UNSTORABLE.search(obj):
        raise InvalidRequestError(f"{where}: must not contain a NUL or half of a surrogate pair.")
    return obj


def integer(obj: object, where: str, *, minimum: int, maximum: int = INTEGER_LIMIT - 1) -> int:
    """Return `obj`, an integer in the closed range.

    A float is refused even if whole; `true` is not 1. Raises InvalidRequestError naming `where`.
    """
    if type(obj) is not int:
        raise InvalidRequestError(f"{where}: must be an integer.")
    if not minimum <= obj <= maximum:
        raise InvalidRequestError(f"{where}: must be from {minimum} to {maximum}.")
    return obj


def items(obj: object, where: str, *, maximum: int, minimum: int = 1) -> list[object]:
    """Return `obj` as a list of `minimum` to `maximum` items.

    An empty list is refused by default: it could be read as no limit or as nothing allowed. Raises
    InvalidRequestError naming `where`.
    """
    if not isinstance(obj, list | tuple):
        raise InvalidRequestError(f"{where}: must be a list.")
    if not minimum <= len(obj) <= maximum:
        raise InvalidRequestError(f"{where}: must have {minimum} to {maximum} items.")
    return list(obj)
