"""Checks what a model passes to the MCP server's own tools, before anything is sent."""

import json
import re
from collections.abc import Sequence
from typing import Final

from agentauth.protocol.capability import (
    MAX_CAPABILITIES,
    Capability,
    parse_allow_entry,
    parse_capability,
)
from agentauth.protocol.errors import InvalidRequestError

METHODS: Final = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_SAFE: Final = frozenset({"GET", "HEAD"})
MAX_PATH: Final = 2_048
MAX_BODY_BYTES: Final = 1_048_576
_PATH: Final = re.compile(r"[!-~]+")
_KEY: Final = re.compile(r"[!-+\--~]{1,128}")


def read_capabilities(entries: Sequence[object]) -> list[Capability]:
    """Each is a JSON object, or `read:calendar`. Raises InvalidRequestError."""
    if not 1 <= len(entries) <= MAX_CAPABILITIES:
        raise InvalidRequestError(
            f"capabilities: name 1 to {MAX_CAPABILITIES}, for example read:calendar."
        )
    found = []
    for index, entry in enumerate(entries):
        where = f"capabilities[{index}]"
        capability = (
            parse_allow_entry(entry, where)
            if isinstance(entry, str)
            else parse_capability(entry, where)
        )
        if capability.type == "transact" and capability.max_amount is None:
            raise InvalidRequestError(
                f'{where}: a transact needs max_amount. Write {{"type": "transact", "resource": '
                f'"{capability.resource}", "max_amount": {{"value": "100.00", "currency": "EUR"}}}}'
            )
        found.append(capability)
    return found


def check_call(method: str, path: str, body: object, key: str | None) -> str:
    """The method in capitals. Raises InvalidRequestError for arguments that cannot be sent."""
    if method.upper() not in METHODS:
        raise InvalidRequestError(f"method: must be one of {', '.join(METHODS)}.")
    if len(path) > MAX_PATH or _PATH.fullmatch(path) is None or "#" in path:
        raise InvalidRequestError(
            f"path: must be 1 to {MAX_PATH} printable ASCII characters without spaces and #, and "
            "start with a slash. Percent-encode other characters."
        )
    if key is None and method.upper() not in _SAFE:
        # Not made here: a client that gives up on the call would never learn it.
        raise InvalidRequestError(
            f"idempotency_key: is required for {method.upper()}. Choose a new one for each "
            "operation, for example pay-invoice-17, and repeat the operation only with the same "
            "one: it is then done once."
        )
    if key is not None and not is_key(key):
        raise InvalidRequestError(
            "idempotency_key: must be 1 to 128 visible ASCII characters without a comma."
        )
    try:
        sent = json.dumps(body, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError):
        raise InvalidRequestError("body: must be JSON without NaN and infinities.") from None
    if len(sent) > MAX_BODY_BYTES:
        raise InvalidRequestError(f"body: must be at most {MAX_BODY_BYTES:,} bytes of JSON.")
    return method.upper()


def is_key(key: str) -> bool:
    """May this name an operation?"""
    return _KEY.fullmatch(key) is not None
