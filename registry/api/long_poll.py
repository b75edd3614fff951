"""Long polls for a human's decision: a few may hold a thread, all others are answered at once."""

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Protocol, TypeVar

from django.conf import settings
from django.utils import timezone

from registry.models import Grant

MAX_WAIT_SECONDS = 30
LOOK_EVERY_SECONDS = 0.5
# Further polls are answered at once, so that waiting agents never take threads others need.
LONG_POLLS = threading.BoundedSemaphore(settings.LONG_POLL_SLOTS)


class _Decidable(Protocol):
    def status_at(self, now: datetime) -> str: ...


Row = TypeVar("Row", bound=_Decidable)


def until_decided(row: Row, *, look: Callable[[], Row], seconds: int) -> Row:
    """`row` as `look` finds it once decided, or after `seconds`; at once if all slots are taken."""
    if not seconds or not LONG_POLLS.acquire(blocking=False):
        return row
    try:
        deadline = time.monotonic() + seconds
        while _is_pending(row) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK_EVERY_SECONDS, left))
            row = look()
    finally:
        LONG_POLLS.release()
    return row


def _is_pending(row: _Decidable) -> bool:
    # Grants and confirmations use the same word.
    return row.status_at(timezone.now()) == Grant.Status.PENDING
