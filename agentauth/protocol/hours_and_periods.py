"""Wall time in IANA zones: weekly windows, their next opening, and the start of a budget's period.

A window is an interval of wall-clock time, not of elapsed seconds. An hour that a spring change
skips is in no window; an hour that an autumn change repeats is in its window both times.
"""

import re
import zoneinfo
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Final

from .errors import InvalidRequestError
from .json_fields import items, members, quote_safely

DAYS: Final = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
PERIODS: Final = ("day", "week", "month", "total")
_DAY_MINUTES: Final = 1440
_TIME: Final = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")
# `localtime` depends on the machine, so two servers would apply different windows; `Factory` means
# that no zone is set.
_NOT_ZONES: Final = frozenset({"localtime", "Factory"})
# A clock change can skip a weekly window wholly, but not twice running: two weeks and a day.
_SEARCH_DAYS: Final = 15
# Entries of about 2 kB, one per list of windows. Enough for the grants that call one process within
# a minute.
_KEPT_OPENINGS: Final = 4_096


@lru_cache(maxsize=1)
def _zone_names() -> frozenset[str]:
    return frozenset(zoneinfo.available_timezones()) - _NOT_ZONES


# zoneinfo caches only eight zones and reads the file of any other on each call. There are about 600
# names.
_zone = lru_cache(maxsize=1_024)(zoneinfo.ZoneInfo)


def is_zone(name: str) -> bool:
    """Whether this is the exact name of an IANA zone."""
    # Looked up before it reaches the file system: zoneinfo opens a zone name as a path.
    return name in _zone_names()


def parse_zone(obj: object, where: str) -> str:
    """Check the exact name of an IANA zone. Raises InvalidRequestError naming `where`."""
    if not isinstance(obj, str) or not is_zone(obj):
        raise InvalidRequestError(f"{where}: {quote_safely(str(obj))} is not an IANA time zone.")
    return obj


@dataclass(frozen=True, slots=True)
class TimeWindow:
    """Wall time from `start` (inclusive) to `end` (exclusive), minutes after midnight, on `days` of
    `zone`.

    `end` at or below `start` wraps past midnight; the day is the one on which the window starts.
    `end` 1440 is "24:00".
    """

    days: tuple[str, ...]
    start: int
    end: int
    zone: str

    @property
    def until(self) -> int:
        """The end in minutes after the midnight before the start; above 1440 if it wraps."""
        return self.end if self.end > self.start else self.end + _DAY_MINUTES

    def holds(self, wall: datetime) -> bool:
        """Is the naive wall time `wall` of this zone inside?

        Seconds count: 16:59:59.9 is before 17:00.
        """
        minute = wall.hour * 60 + wall.minute
        today, yesterday = DAYS[wall.weekday()], DAYS[wall.weekday() - 1]
        if today in self.days and self.start <= minute < self.until:
            return True
        return yesterday in self.days and minute + _DAY_MINUTES < self.until

    def is_open(self, now: datetime) -> bool:
        """Is the aware instant `now` inside?"""
        return self.holds(now.astimezone(_zone(self.zone)))

    def lies_inside(self, other: "TimeWindow") -> bool:
        """Is every wall time of this window in `other`, in the same zone and on days of `other`?"""
        return (
            self.zone == other.zone
            and set(self.days) <= set(other.days)
            and other.start <= self.start
            and self.until <= other.until
        )

    def on(self, day: str) -> "TimeWindow":
        """The same window on one of its days."""
        return TimeWindow((day,), self.start, self.end, self.zone)

    def to_json(self) -> dict[str, object]:
        """`{"days","start","end","zone"}` as on the wire."""
        return {
            "days": list(self.days),
            "start": _clock(self.start),
            "end": _clock(self.end),
            "zone": self.zone,
        }


def _clock(minutes: int) -> str:
    return f"{minutes // 60:02d}:{minutes % 60:02d}"


def _parse_clock(obj: object, where: str, *, may_be_24: bool) -> int:
    if obj == "24:00" and may_be_24:
        return _DAY_MINUTES
    if not isinstance(obj, str) or (match := _TIME.fullmatch(obj)) is None:
        raise InvalidRequestError(f"{where}: must be a wall time HH:MM.")
    return int(match[1]) * 60 + int(match[2])


def parse_window(obj: object, where: str) -> TimeWindow:
    """Read one time window (docs/protocol.md section 3).

    Raises InvalidRequestError naming the member. `end` = `start` is refused: it could be read as
    never or as always. A whole day is "00:00" to "24:00".
    """
    body = members(obj, where, required=("days", "start", "end", "zone"))
    days = items(body["days"], f"{where}.days", maximum=len(DAYS))
    for day in days:
        if day not in DAYS:
            raise InvalidRequestError(f"{where}.days: each must be one of {', '.join(DAYS)}.")
    if len(set(days)) != len(days):
        raise InvalidRequestError(f"{where}.days: names a day twice.")
    start = _parse_clock(body["start"], f"{where}.start", may_be_24=False)
    end = _parse_clock(body["end"], f"{where}.end", may_be_24=True)
    if start == end:
        raise InvalidRequestError(f"{where}.end: must differ from start.")
    zone = parse_zone(body["zone"], f"{where}.zone")
    # In weekday order, so that two spellings of one set of days are equal.
    return TimeWindow(tuple(day for day in DAYS if day in days), start, end, zone)


def windows_narrow(new: Iterable[TimeWindow], old: Iterable[TimeWindow]) -> bool:
    """Does each day of each new window lie inside one old window of the same zone and day?"""
    wide = tuple(old)
    return all(
        any(window.on(day).lies_inside(each) for each in wide)
        for window in new
        for day in window.days
    )


def seconds_until(instant: datetime, now: datetime) -> int:
    """Whole seconds from `now` to `instant`, at least 1.

    Rounded up, so that a client that waits this long is not too early.
    """
    # Integer arithmetic on timedelta: total_seconds() is a float.
    return max(1, -((now - instant) // timedelta(seconds=1)))


def next_opening(windows: tuple[TimeWindow, ...], now: datetime) -> datetime | None:
    """The first instant (UTC) after `now` at which a window opens; None if none opens in two weeks.

    For a `now` at which all are closed. The search costs ten times as much as the rest of a
    refusal, so it runs once a minute for each list of windows.
    """
    opening = _kept_opening(windows, now.astimezone(UTC).replace(second=0, microsecond=0))
    # Today every window opens on a whole minute of UTC, so this is after `now`. Before 1972, some
    # offsets had seconds: an opening within this very minute may be over, so search from `now`.
    return opening if opening is None or opening > now else _search_opening(windows, now)


def _search_opening(windows: tuple[TimeWindow, ...], now: datetime) -> datetime | None:
    openings = (
        next((at for at in _possible_openings(window, now) if window.is_open(at)), None)
        for window in windows
    )
    return min((at for at in openings if at is not None), default=None)


_kept_opening = lru_cache(maxsize=_KEPT_OPENINGS)(_search_opening)


def _possible_openings(window: TimeWindow, now: datetime) -> list[datetime]:
    """The instants after `now`, in order, at which a closed window may open: its starts and every
    clock change.

    A clock change can jump into a window (spring) or back into one that had closed (autumn).
    """
    zone = _zone(window.zone)
    today = now.astimezone(zone).date()
    hour, minute = divmod(window.start, 60)
    found: set[datetime] = set()
    for offset in range(-1, _SEARCH_DAYS):
        day = today + timedelta(days=offset)
        naive = datetime(day.year, day.month, day.day, hour, minute)  # noqa: DTZ001 — a wall time, zoned just below
        found.update(naive.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    found.update(_changes(zone, now, now + timedelta(days=_SEARCH_DAYS)))
    return sorted(at for at in found if at > now)


def _changes(zone: zoneinfo.ZoneInfo, begin: datetime, end: datetime) -> Iterator[datetime]:
    """The instants in (begin, end], to the second, at which the zone's offset changes (at most one
    a day).
    """
    low = begin.astimezone(UTC).replace(microsecond=0)
    while low < end:
        high = low + timedelta(days=1)
        if low.astimezone(zone).utcoffset() != high.astimezone(zone).utcoffset():
            yield _change_between(zone, low, high)
        low = high


def _change_between(zone: zoneinfo.ZoneInfo, low: datetime, high: datetime) -> datetime:
    """Bisect to the first second in (low, high] that has the offset of `high`."""
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):
        middle = low + timedelta(seconds=(high - low) // timedelta(seconds=2))
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high


def _first_day(period: str, today: date) -> date | None:
    match period:
        case "day":
            return today
        case "week":
            return today - timedelta(days=today.weekday())
        case "month":
            return today.replace(day=1)
    return None


def _next_first_day(period: str, first: date) -> date:
    match period:
        case "day":
            return first + timedelta(days=1)
        case "week":
            return first + timedelta(days=7)
    # The 1st plus 31 days is always in the next month.
    return (first + timedelta(days=31)).replace(day=1)


def period_start(period: str, zone: str, now: datetime) -> str:
    """The local date (ISO) on which the period around `now` begins; "total" if it has no end.

    ISO dates sort as text, so a ledger can notice a clock that was set back.
    """
    first = _first_day(period, now.astimezone(_zone(zone)).date())
    return "total" if first is None else first.isoformat()


def period_end(period: str, zone: str, now: datetime) -> datetime | None:
    """The first instant (UTC) of the next period, or None for `total`.

    If midnight (Beirut in spring) or the whole day (Apia in 2011) is skipped, it is the instant of
    the change.
    """
    first = _first_day(period, now.astimezone(_zone(zone)).date())
    return None if first is None else _midnight(_next_first_day(period, first), zone)


def reaches_into(period: str, start: str, zone: str, *, running_in: str, now: datetime) -> bool:
    """Does the period of `zone` that began on the local date `start` end after the start of the
    period of `running_in` around `now`? False for `total`.

    Then money spent in it counts: otherwise a new budget in another zone would start at zero.
    """
    first = _first_day(period, now.astimezone(_zone(running_in)).date())
    if first is None:
        return False
    if zone == running_in:
        return start >= first.isoformat()
    end = _midnight(_next_first_day(period, date.fromisoformat(start)), zone)
    return end > _midnight(first, running_in)


def _midnight(day: date, zone: str) -> datetime:
    # A midnight that occurs twice: the first counts. A skipped one is read with the offset before
    # the change, which gives the instant of the change if the gap starts at midnight, as all do
    # since 2000.
    return datetime(day.year, day.month, day.day, tzinfo=_zone(zone)).astimezone(UTC)
