"""Strict reading of JSON values already in memory: exact members, exact types, errors that name the place.

Bytes become values in `encoding.py`; what the values mean is decided by the modules that call these functions.
"""

import re
from collections.abc import Collection
from typing import Final

from .errors import InvalidRequestError

# Doubles hold every integer below 2^53 exactly; beyond it two JSON readers may see two numbers.
INTEGER_LIMIT: Final = 2**53
_SHOWN: Final = 40
# RFC 8785 cannot encode a lone surrogate and PostgreSQL cannot store NUL: refused here, not found out there.
_UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")


def shown(value: str) -> str:
    """A foreign string made fit for an error sentence: ASCII, short, quoted.

    Bounded because an error body stays below 1 kB whatever was sent, escaped because it ends up in terminals.
    """
    return ascii(value if len(value) <= _SHOWN else value[:_SHOWN] + "...")


def members(
    obj: object, where: str, *, required: Collection[str] = (), optional: Collection[str] = ()
) -> dict[str, object]:
    """The JSON object `obj`, which has every member of `required` and none outside the two lists.

    Raises InvalidRequestError naming `where` (docs/protocol.md section 0: unknown members are refused).
    """
    if not isinstance(obj, dict):
        raise InvalidRequestError(f"{where}: must be a JSON object.")
    for name in obj:
        # A member we do not know may be a limit its sender relies on: ignoring it would widen what was asked.
        if not isinstance(name, str) or (name not in required and name not in optional):
            raise InvalidRequestError(f"{where}: the member {shown(str(name))} is not known here.")
    for name in required:
        if name not in obj:
            raise InvalidRequestError(f"{where}.{name}: is missing.")
    return obj


def text(obj: object, where: str, *, maximum: int, minimum: int = 1) -> str:
    """A string of `minimum` to `maximum` code points that every store and every encoder can hold.

    Raises InvalidRequestError naming `where`.
    """
    if type(obj) is str and minimum <= len(obj) <= maximum and obj.isascii() and "\0" not in obj:
        # Most are: the rest tells what is wrong, or looks closer.
        return obj
    if not isinstance(obj, str):
        raise InvalidRequestError(f"{where}: must be a string.")
    if not minimum <= len(obj) <= maximum:
        raise InvalidRequestError(f"{where}: must be {minimum} to {maximum} characters long.")
    if _UNSTORABLE.search(obj):
        raise InvalidRequestError(f"{where}: holds a NUL or half of a surrogate pair.")
    return obj


def integer(obj: object, where: str, *, minimum: int, maximum: int = INTEGER_LIMIT - 1) -> int:
    """An integer in the closed range. A float is refused even when whole, and `true` is not 1.

    Raises InvalidRequestError naming `where`.
    """
    if type(obj) is not int:
        raise InvalidRequestError(f"{where}: must be an integer.")
    if not minimum <= obj <= maximum:
        raise InvalidRequestError(f"{where}: must be from {minimum} to {maximum}.")
    return obj


def items(obj: object, where: str, *, maximum: int, minimum: int = 1) -> list[object]:
    """A list of `minimum` to `maximum` items. Empty is refused by default: an empty list of limits says nothing.

    Raises InvalidRequestError naming `where`.
    """
    if not isinstance(obj, list | tuple):
        raise InvalidRequestError(f"{where}: must be a list.")
    if not minimum <= len(obj) <= maximum:
        raise InvalidRequestError(f"{where}: must have {minimum} to {maximum} items.")
    return list(obj)
