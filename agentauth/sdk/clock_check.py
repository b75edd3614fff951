"""Is this host's clock right? Compared with the `Date` of an answer. No I/O."""

import email.utils
import logging
import time
from collections.abc import Mapping
from typing import Final

from .errors import ClockError

logger = logging.getLogger(__name__)

# Seconds. A proof may be 60 s off (docs/protocol.md section 2); half of that is worth a warning.
WARN_SECONDS: Final = 30
# `Date` has whole seconds, and the answer takes time to arrive.
_UNCERTAIN_SECONDS: Final = 5
_MINUTE: Final = 60
_HOUR: Final = 3_600
_LONGEST_DATE: Final = 64


def clock_offset(headers: Mapping[str, str]) -> int | None:
    """Seconds by which this host's clock is ahead of the server's; None without a usable Date.

    Negative if it is behind. Right to about two seconds, plus the time the answer took.
    """
    value = headers.get("Date", "")
    if not value or len(value) > _LONGEST_DATE:
        return None
    try:
        return round(time.time() - email.utils.parsedate_to_datetime(value).timestamp())
    except (ValueError, OverflowError):
        return None


def clock_error(who: str, headers: Mapping[str, str]) -> ClockError | None:
    """The error for a proof that `who` refused by its time; None if the clocks agree."""
    offset = clock_offset(headers)
    if offset is None or abs(offset) <= _UNCERTAIN_SECONDS:
        return None
    return ClockError(
        f"This host's clock is {_said(offset)} the clock of {who[0].lower()}{who[1:]}, so every "
        "proof is refused. Set this host's clock, by NTP for example, then try again.",
        reason="iat",
        offset=offset,
    )


class ClockWatch:
    """Warns once, while proofs still pass, that this host's clock runs away."""

    def __init__(self) -> None:
        self._has_warned = False

    def see(self, who: str, headers: Mapping[str, str]) -> None:
        """Look at one answer."""
        offset = clock_offset(headers)
        if offset is None or abs(offset) < WARN_SECONDS:
            self._has_warned = False
        elif not self._has_warned:
            self._has_warned = True
            logger.warning(
                "This host's clock is %s the clock of %s. From 60 s on, every call is refused: "
                "set this host's clock, by NTP for example.",
                _said(offset),
                f"{who[0].lower()}{who[1:]}",
            )


def _said(offset: int) -> str:
    seconds, which = abs(offset), "ahead of" if offset > 0 else "behind"
    if seconds < _MINUTE:
        return f"{seconds} s {which}"
    if seconds < _HOUR:
        return f"{seconds // _MINUTE} min {seconds % _MINUTE} s {which}"
    return f"{seconds // _HOUR} h {seconds % _HOUR // _MINUTE} min {which}"
