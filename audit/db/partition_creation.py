"""Monthly partitions of the events on PostgreSQL, by the time in their ids.

The jobs create partitions ahead. If one is missing, the process that records an event creates it,
on a separate connection: in the recording transaction, the lock would block other processes until
its end, and a rollback would undo it.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from django.db import connection

# How many months after the current one the jobs create.
AHEAD: Final = 3
# Two permanent partitions hold ids from before and after these years.
FIRST_YEAR, END_YEAR = 2025, 2100
# How long a process caches that a month exists. A month that may be dropped is never cached.
KNOWN_SECONDS: Final = 3600.0
# A month may be dropped right after it was created: retry a few times, then let the insert fail.
_ATTEMPTS: Final = 3
_MONTHS: Final = 12
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Whether a month exists, and whether it is too young to be dropped (`audit.db.partition_dropping`).
# Selecting from the table locks it until the end of the transaction, so no partition can be dropped
# before that.
_STANDS: Final = """
SELECT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
               WHERE inhparent = 'audit_event'::regclass AND relname = %s AND NOT inhdetachpending),
       %s >= now() - interval '2 months', (SELECT id FROM audit_event WHERE false)
"""
_ADD: Final = "SELECT agentauth_add_event_month(%s)"


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A month in UTC; `number` is 1 to 12."""

    year: int
    number: int

    def __str__(self) -> str:
        return f"{self.year}-{self.number:02}"

    @property
    def start(self) -> datetime:
        return datetime(self.year, self.number, 1, tzinfo=UTC)

    @property
    def partition(self) -> str:
        return f"audit_event_{self.year}_{self.number:02}"

    @property
    def first_id(self) -> uuid.UUID:
        """The lower bound of this month's ids; ids of earlier months are below it."""
        return uuid.UUID(int=_milliseconds_of(self.start) << 80)

    def later(self, months: int) -> "Month":
        """The month that many months later; earlier if negative."""
        years, rest = divmod(self.number - 1 + months, _MONTHS)
        return Month(self.year + years, rest + 1)


def month_at(at: datetime) -> Month:
    there = at.astimezone(UTC)
    return Month(there.year, there.month)


def month_of(made: uuid.UUID | str) -> Month | None:
    """The month whose partition holds the id; None for the two permanent partitions."""
    at = _milliseconds(made)
    if not _FIRST <= at < _END:
        return None
    return month_at(datetime.fromtimestamp(at // 1000, tz=UTC))


class _Known:
    """Cache of the months that exist, each with its expiry (monotonic seconds)."""

    def __init__(self) -> None:
        self._until: dict[Month, float] = {}
        # The bounds of the month used last, in milliseconds: it usually answers the next question
        # too.
        self._last = (0, 0, 0.0)

    def hold(self, first: int, last: int) -> bool:
        """Whether all ids from time `first` to `last` (ms) belong to the month used last."""
        low, end, until = self._last
        return low <= first and last < end and time.monotonic() < until

    def has(self, month: Month) -> bool:
        if time.monotonic() >= (until := self._until.get(month, 0.0)):
            return False
        self._last = (_milliseconds_of(month.start), _milliseconds_of(month.later(1).start), until)
        return True

    def add(self, month: Month) -> None:
        self._until[month] = time.monotonic() + KNOWN_SECONDS


KNOWN = _Known()


def ensure_partitions(ids: Sequence[uuid.UUID | str]) -> None:
    """Make sure that the partitions for these ids (in order) exist.

    Call it in the transaction that inserts them. Usually the cache answers, without a query. Raises
    django.db errors if a month is missing and cannot be created.
    """
    if connection.vendor != "postgresql" or KNOWN.hold(
        _milliseconds(ids[0]), _milliseconds(ids[-1])
    ):
        return
    for month in sorted({month for made in ids if (month := month_of(made))}):
        if not KNOWN.has(month):
            _make_room_in(month)


def _make_room_in(month: Month) -> None:
    for _ in range(_ATTEMPTS):
        there, lasts = _stands(month)
        if there:
            if lasts:
                KNOWN.add(month)
            return
        with closing(connection.copy()) as own, own.cursor() as cursor:
            cursor.execute(_ADD, [month.start])


def create_partitions(*, now: datetime) -> list[str]:
    """Create the partitions of this month and of AHEAD more; returns the names of those created.

    Does nothing on SQLite. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return []
    this = month_at(now)
    wanted = [this.later(ahead) for ahead in range(AHEAD + 1)]
    missing = [month for month in wanted if not _stands(month)[0]]
    with connection.cursor() as cursor:
        for month in missing:
            cursor.execute(_ADD, [month.start])
    return [month.partition for month in missing]


def _stands(month: Month) -> tuple[bool, bool]:
    with connection.cursor() as cursor:
        cursor.execute(_STANDS, [month.partition, month.start])
        there, lasts, _ = cursor.fetchone()
    return there, lasts


def _milliseconds(made: uuid.UUID | str) -> int:
    return int(made[:8] + made[9:13], 16) if isinstance(made, str) else made.int >> 80


def _milliseconds_of(at: datetime) -> int:
    return int((at - _EPOCH).total_seconds()) * 1000


_FIRST = _milliseconds_of(Month(FIRST_YEAR, 1).start)
_END = _milliseconds_of(Month(END_YEAR, 1).start)
