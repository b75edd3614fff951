"""A local time that a person types, also when clocks change (DST)."""

import re
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

from agentauth.protocol.errors import InvalidRequestError

# The format of a browser's field; `fromisoformat` alone accepts others too.
_FORM: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}")


def moment_typed(text: str, zone: str, *, is_end: bool) -> datetime:
    """The moment in UTC. Raises InvalidRequestError.

    If clocks go back, an hour occurs twice and the absence includes both: a start is in the first,
    an end in the second. If clocks go forward, the skipped hour does not exist and is refused.
    """
    name = "end" if is_end else "beginning"
    if not _FORM.fullmatch(text):
        raise InvalidRequestError(f"Write the {name} as date and time, such as 2026-12-24T18:00.")
    try:
        local = datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=int(is_end))
        moment = local.astimezone(UTC)
        back = moment.astimezone(ZoneInfo(zone))
    except (ValueError, OverflowError):
        raise InvalidRequestError(f"The {name} is not a date of the calendar.") from None
    if back.replace(tzinfo=None) != local.replace(tzinfo=None):
        raise InvalidRequestError(
            f"The {name} {text} does not exist in {zone}: the clocks go forward. Choose another."
        )
    return moment
