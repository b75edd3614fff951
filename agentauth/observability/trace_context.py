"""Reads the `traceparent` header of W3C Trace Context."""

import re
from typing import Final

# Version 00 of https://www.w3.org/TR/trace-context/. A later version's further fields are refused.
_TRACEPARENT: Final = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


def read_traceparent(text: str) -> tuple[int, int] | None:
    """Trace id and span id of a caller's `traceparent`; None unless it is exactly one."""
    found = _TRACEPARENT.fullmatch(text)
    if found is None:
        return None
    trace, span = int(found[1], 16), int(found[2], 16)
    return (trace, span) if trace and span else None
