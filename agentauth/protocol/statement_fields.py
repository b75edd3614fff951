"""Members that several kinds of statement share, each with exactly one spelling.

A second spelling would give the same statement a second challenge.
"""

import re
from typing import Final

from .encoding import b64u_decode, parse_timestamp, timestamp
from .errors import EncodingError, InvalidRequestError
from .json_fields import text
from .url_normalization import split_url

NONCE_BYTES: Final = 32
UUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
HEX_SHA256: Final = re.compile(r"[0-9a-f]{64}")
BREAK: Final = re.compile(r"[0-9]{14}")
LANGUAGE: Final = re.compile(r"[A-Za-z]{2,8}(?:-[A-Za-z0-9]{1,8}){0,3}")


def origin(value: object, where: str) -> str:
    """The origin of an absolute http or https URL.

    Raises InvalidRequestError naming `where`, as do all functions here.
    """
    try:
        return split_url(text(value, where, maximum=2048))[0]
    except InvalidRequestError:
        raise InvalidRequestError(f"{where}: must be an absolute http or https URL.") from None


def matching(value: object, pattern: re.Pattern[str], where: str) -> None:
    """Check that the whole text matches `pattern`."""
    if not isinstance(value, str) or pattern.fullmatch(value) is None:
        raise InvalidRequestError(f"{where}: is not in the form it must have.")


def time(value: object, where: str) -> None:
    """Check that this is a time as `timestamp` writes it."""
    try:
        # Formatted again and compared: under a signature one instant must have one spelling.
        if timestamp(parse_timestamp(value)) == value:
            return
    except EncodingError:
        pass
    raise InvalidRequestError(f"{where}: must be a time such as 2026-01-31T09:30:00Z.")


def bytes32(value: object, where: str) -> None:
    """Check that this is 32 bytes in base64url."""
    try:
        if isinstance(value, str) and len(b64u_decode(value)) == NONCE_BYTES:
            return
    except EncodingError:
        pass
    raise InvalidRequestError(f"{where}: must be 32 bytes in base64url.")
