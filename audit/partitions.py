"""The months of the log: on PostgreSQL the events of each stand in a partition of their own, by the time in their ids.

The jobs make months ahead. Where they did not, whoever records an event makes its month, on a connection of their own: made
in a transaction that goes on, it would keep others waiting for its end, and be gone if that is rolled back.
"""

import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from django.db import connection

# Months that are made ahead of the one that is.
AHEAD: Final = 3
# Ids from before and after these years stand in two partitions that are always there.
FIRST_YEAR, END_YEAR = 2025, 2100
# So long a process believes that a month is there. One that may be dropped it never believes in.
KNOWN_SECONDS: Final = 3600.0
# A month can be dropped just after it was made: then once more. What comes again and again is no accident.
_ATTEMPTS: Final = 3
_MONTHS: Final = 12
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)

# Whether a month is there, and whether it will be (`audit.dropping` drops none that is so young). Naming the table holds it to
# the end of the transaction: until then none of its partitions goes.
_STANDS: Final = """
SELECT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
               WHERE inhparent = 'audit_event'::regclass AND relname = %s AND NOT inhdetachpending),
       %s >= now() - interval '2 months', (SELECT id FROM audit_event WHERE false)
"""
_ADD: Final = "SELECT agentauth_add_event_month(%s)"


@dataclass(frozen=True, slots=True, order=True)
class Month:
    """A month of UTC; `number` is 1 to 12."""

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
        """Ids of this month are not below it; those of the month before are."""
        return uuid.UUID(int=_milliseconds_of(self.start) << 80)

    def later(self, months: int) -> "Month":
        """So many months on; negative: back."""
        years, rest = divmod(self.number - 1 + months, _MONTHS)
        return Month(self.year + years, rest + 1)


def month_at(at: datetime) -> Month:
    there = at.astimezone(UTC)
    return Month(there.year, there.month)


def month_of(made: uuid.UUID | str) -> Month | None:
    """The month whose partition takes the id; None where it is one of the two at the ends."""
    at = _milliseconds(made)
    if not _FIRST <= at < _END:
        return None
    return month_at(datetime.fromtimestamp(at // 1000, tz=UTC))


class _Known:
    """The months this process believes in, and until when (monotonic seconds)."""

    def __init__(self) -> None:
        self._until: dict[Month, float] = {}
        # The bounds of the month asked about last, in milliseconds: mostly the answer.
        self._last = (0, 0, 0.0)

    def hold(self, first: int, last: int) -> bool:
        """Whether ids of both times, and of all between them, have a place in the month asked about last."""
        low, end, until = self._last
        return low <= first and last < end and time.monotonic() < until

    def has(self, month: Month) -> bool:
        if time.monotonic() >= (until := self._until.get(month, 0.0)):
            return False
        self._last = (_milliseconds_of(month.start), _milliseconds_of(month.later(1).start), until)
        return True

    def add(self, month: Month) -> None:
        self._until[month] = time.monotonic() + KNOWN_SECONDS

    def forget(self) -> None:
        self._until.clear()
        self._last = (0, 0, 0.0)


KNOWN = _Known()


def make_room(ids: Sequence[uuid.UUID | str]) -> None:
    """See to it that events of these ids, in their order, find their months. Needs the transaction that inserts them.

    Mostly it asks nobody. Raises django.db errors where a month is missing and cannot be made.
    """
    if connection.vendor != "postgresql" or KNOWN.hold(_milliseconds(ids[0]), _milliseconds(ids[-1])):
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
    """Make this month and those ahead where they are missing; returns the names of those it made.

    Raises django.db errors. On SQLite there are none to make.
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


_FIRST, _END = _milliseconds_of(Month(FIRST_YEAR, 1).start), _milliseconds_of(Month(END_YEAR, 1).start)
