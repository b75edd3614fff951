"""Wall-clock time: windows that wrap midnight or cross a clock change, and where budget periods
begin and end.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agentauth.protocol import hours_and_periods
from agentauth.protocol.behavioural_envelope import EMPTY, EnvelopeRefused, Ledger, enforce
from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.hours_and_periods import (
    DAYS,
    TimeWindow,
    next_opening,
    parse_window,
    parse_zone,
    period_end,
    period_start,
    seconds_until,
    windows_narrow,
)

OFFICE: dict[str, Any] = {
    "days": ["mon", "fri"],
    "start": "09:00",
    "end": "17:00",
    "zone": "Europe/Berlin",
}
ALL_DAYS = list(DAYS)


def window(
    start: str, end: str, zone: str = "Europe/Berlin", days: list[str] | None = None
) -> TimeWindow:
    return parse_window(
        {"days": days or ALL_DAYS, "start": start, "end": end, "zone": zone}, "window"
    )


def local(text: str, zone: str = "Europe/Berlin", *, fold: int = 0) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone), fold=fold)


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def test_a_window_is_read_and_written_back() -> None:
    assert parse_window(OFFICE, "w").to_json() == OFFICE
    assert parse_window({**OFFICE, "days": ["fri", "mon"]}, "w") == parse_window(OFFICE, "w")
    assert window("00:00", "24:00").to_json()["end"] == "24:00"


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"end": "09:00"}, "w.end: must differ"),
        ({"start": "9:00"}, "w.start: "),
        ({"start": "24:00"}, "w.start: "),
        ({"end": "24:01"}, "w.end: "),
        ({"end": "17:60"}, "w.end: "),
        ({"end": "17:00:00"}, "w.end: "),
        ({"end": "١٧:00"}, "w.end: "),
        ({"end": 17}, "w.end: "),
        ({"end": None}, "w.end: "),
        ({"days": []}, "w.days: "),
        ({"days": ["mon", "mon"]}, "w.days: "),
        ({"days": ["Mon"]}, "w.days: "),
        ({"days": [["mon"]]}, "w.days: "),
        ({"days": [1]}, "w.days: "),
        ({"days": "mon"}, "w.days: "),
        ({"zone": "Europe/Atlantis"}, "w.zone: "),
        ({"zone": "europe/berlin"}, "w.zone: "),
        ({"zone": "../../etc/passwd"}, "w.zone: "),
        ({"zone": "localtime"}, "w.zone: "),
        ({"zone": "+01:00"}, "w.zone: "),
        ({"zone": ""}, "w.zone: "),
        ({"zone": None}, "w.zone: "),
        ({"zone": ["UTC"]}, "w.zone: "),
        ({"tz": "UTC"}, "w: the member"),
    ],
    ids=str,
)
def test_EN_15_a_window_outside_the_grammar_is_refused(change: dict[str, Any], place: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        parse_window({**OFFICE, **change}, "w")
    assert caught.value.description.startswith(place)


def test_a_member_left_out_is_refused() -> None:
    for name in OFFICE:
        with pytest.raises(InvalidRequestError, match=f"{name}: is missing"):
            parse_window({key: value for key, value in OFFICE.items() if key != name}, "w")
    assert parse_zone("UTC", "z") == "UTC"


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-11-23T08:59:59.999999", False),
        ("2026-11-23T09:00", True),
        ("2026-11-23T16:59:59.999999", True),
        ("2026-11-23T17:00", False),
        ("2026-11-24T12:00", False),  # Tuesday
        ("2026-11-27T12:00", True),  # Friday
    ],
)
def test_the_start_is_inside_and_the_end_is_outside(at: str, *, is_open: bool) -> None:
    assert parse_window(OFFICE, "w").is_open(local(at)) is is_open


@pytest.mark.parametrize(
    ("at", "is_open"),
    [
        ("2026-11-27T21:59", False),
        ("2026-11-27T22:00", True),  # Friday night
        ("2026-11-28T05:59", True),  # still Friday's window
        ("2026-11-28T06:00", False),
        ("2026-11-28T22:00", False),  # Saturday starts none
        ("2026-11-27T05:00", False),  # Thursday started none
    ],
)
def test_a_window_that_wraps_midnight_belongs_to_the_day_it_starts(
    at: str, *, is_open: bool
) -> None:
    assert window("22:00", "06:00", days=["fri"]).is_open(local(at)) is is_open


def test_sunday_night_wraps_into_monday() -> None:
    night = window("22:00", "00:30", days=["sun"])
    assert night.is_open(local("2026-11-30T00:29"))
    assert not night.is_open(local("2026-11-30T00:30"))
    assert night.is_open(local("2026-11-29T23:59"))


def test_whole_days_can_be_written() -> None:
    monday = window("00:00", "24:00", days=["mon"])
    assert monday.is_open(local("2026-11-23T00:00"))
    assert monday.is_open(local("2026-11-23T23:59:59"))
    assert not monday.is_open(local("2026-11-24T00:00"))
    assert window("09:00", "00:00").is_open(local("2026-11-24T23:59:59"))


SCANS = [
    # zone, instant (UTC) shortly before a clock change, the change
    ("Europe/Berlin", "2026-03-29T00:00:00"),  # spring: 02:00 to 03:00
    ("Europe/Berlin", "2026-10-24T23:00:00"),  # autumn: 03:00 back to 02:00
    ("America/New_York", "2026-03-08T06:00:00"),
    ("America/New_York", "2026-11-01T05:00:00"),
    ("Australia/Lord_Howe", "2026-10-03T14:30:00"),  # half an hour forward
    ("Australia/Lord_Howe", "2026-04-04T14:00:00"),  # half an hour back
    ("Pacific/Apia", "2011-12-30T09:00:00"),  # a whole day skipped
    ("Asia/Beirut", "2026-03-28T21:00:00"),  # midnight itself skipped
    ("Africa/Cairo", "2026-10-29T20:00:00"),  # midnight shown twice
]
SPANS = [
    ("01:30", "02:30"),
    ("02:00", "02:10"),
    ("02:15", "02:45"),
    ("23:45", "02:15"),
    ("00:00", "00:30"),
    ("03:00", "02:59"),
]


@pytest.mark.parametrize(
    ("zone", "begin"), SCANS, ids=[f"{zone}-{begin[:10]}" for zone, begin in SCANS]
)
@pytest.mark.parametrize(("start", "end"), SPANS, ids=[f"{start}-{end}" for start, end in SPANS])
def test_the_next_opening_is_the_one_found_minute_by_minute(
    zone: str, begin: str, start: str, end: str
) -> None:
    """The oracle checks every minute of the next two days against only the wall clock."""
    each = window(start, end, zone)
    now = utc(begin)
    if each.is_open(now):
        closing = next(
            at
            for at in (now + timedelta(minutes=step) for step in range(3000))
            if not each.is_open(at)
        )
        now = closing
    walked = (now + timedelta(minutes=step) for step in range(1, 2 * 1440 + 60))
    assert next_opening((each,), now) == next(at for at in walked if each.is_open(at))


def test_an_hour_that_spring_skips_is_in_no_window() -> None:
    gap = window("02:15", "02:45", days=["sun"])
    before = local("2026-03-29T01:59:59")
    # This Sunday never shows 02:15, so the next opening is a week later, in summer time.
    assert next_opening((gap,), before) == utc("2026-04-05T00:15:00")
    into = window("02:30", "04:00", days=["sun"])
    assert next_opening((into,), before) == utc("2026-03-29T01:00:00")
    assert into.is_open(utc("2026-03-29T01:00:00"))
    assert not into.is_open(utc("2026-03-29T00:59:59"))


def test_an_hour_that_autumn_repeats_is_in_its_window_both_times() -> None:
    each = window("02:15", "02:45", days=["sun"])
    first, second = (local("2026-10-25T02:15", fold=fold) for fold in (0, 1))
    assert second - first == timedelta(0)  # wall times of one zone subtract as wall times
    assert second.astimezone(UTC) - first.astimezone(UTC) == timedelta(hours=1)
    assert each.is_open(first)
    assert each.is_open(second)
    assert not each.is_open(utc("2026-10-25T00:45:00"))
    assert next_opening((each,), utc("2026-10-25T00:45:00")) == utc("2026-10-25T01:15:00")


def test_the_clock_set_back_into_a_closed_window_opens_it_again() -> None:
    each = window("01:30", "02:30", days=["sun"])
    assert not each.is_open(utc("2026-10-25T00:30:00"))  # 02:30 the first time
    assert next_opening((each,), utc("2026-10-25T00:30:00")) == utc(
        "2026-10-25T01:00:00"
    )  # 02:00 the second time


def test_lord_howe_moves_by_half_an_hour() -> None:
    each = window("02:00", "02:30", "Australia/Lord_Howe", days=["sun"])
    assert next_opening((each,), utc("2026-10-03T15:00:00")) == utc(
        "2026-10-10T15:00:00"
    )  # skipped for a week


def test_apia_never_saw_the_30th_of_december_2011() -> None:
    friday = window("09:00", "17:00", "Pacific/Apia", days=["fri"])
    assert next_opening((friday,), utc("2011-12-29T20:00:00")) == local(
        "2012-01-06T09:00", "Pacific/Apia"
    )
    # By the wall, Friday night's window still reaches into Saturday morning.
    night = window("22:00", "06:00", "Pacific/Apia", days=["fri"])
    assert next_opening((night,), utc("2011-12-29T20:00:00")) == utc("2011-12-30T10:00:00")


def test_retry_after_is_the_seconds_until_the_next_opening_rounded_up() -> None:
    now = local("2026-11-24T12:00:00.250000")  # Tuesday
    opening = next_opening((parse_window(OFFICE, "w"), window("08:00", "09:00", days=["thu"])), now)
    assert opening == local("2026-11-26T08:00")
    assert seconds_until(opening, now) == 44 * 3600
    assert seconds_until(now, now) == 1
    assert next_opening((), now) is None


# Twice as many as Python keeps.
ZONES = [
    "Europe/Berlin",
    "Europe/Paris",
    "Europe/London",
    "America/New_York",
    "America/Chicago",
    "America/Denver",
    "America/Los_Angeles",
    "Asia/Tokyo",
    "Asia/Kolkata",
    "Asia/Dubai",
    "Australia/Sydney",
    "Pacific/Auckland",
    "Africa/Cairo",
    "America/Sao_Paulo",
    "Asia/Beirut",
    "Australia/Lord_Howe",
]


def told(closed: tuple[TimeWindow, ...], now: datetime) -> int | None:
    outcome = enforce(
        replace(EMPTY, allowed_time_windows=closed),
        Ledger(),
        action=None,
        now=now,
        human_online=False,
        confirmation="none",
    )
    assert isinstance(outcome, EnvelopeRefused)
    return outcome.retry_after


def test_SA_9_the_next_opening_is_searched_once_a_minute() -> None:
    closed = tuple(window("09:00", "09:30", zone, ["mon"]) for zone in ZONES)
    minute = utc("2026-11-25T12:00:00")
    searched = hours_and_periods._kept_opening.cache_info().misses
    waits = [told(closed, minute + timedelta(seconds=second)) for second in range(60)]
    assert hours_and_periods._kept_opening.cache_info().misses == searched + 1
    # From Wednesday noon to Monday, 09:00 in Auckland.
    assert waits == [4 * 86_400 + 8 * 3_600 - second for second in range(60)]
    told(closed, minute + timedelta(seconds=60))
    assert hours_and_periods._kept_opening.cache_info().misses == searched + 2


def test_SA_9_the_file_of_each_zone_is_read_once() -> None:
    closed = tuple(window("09:00", "09:30", zone, ["mon"]) for zone in ZONES)
    hours_and_periods._zone.cache_clear()
    for minute in range(3):
        told(closed, utc("2026-11-25T12:00:00") + timedelta(minutes=minute))
    assert hours_and_periods._zone.cache_info().misses == len(ZONES)


def test_SA_9_an_opening_of_the_same_minute_that_is_past_is_not_told() -> None:
    # Until 1972 Monrovia's minutes began at half a minute of UTC.
    each = window("10:00", "10:01", "Africa/Monrovia")
    opening = utc("1971-06-01T10:44:30")
    assert next_opening((each,), utc("1971-06-01T10:44:10")) == opening
    assert next_opening((each,), utc("1971-06-01T10:44:40")) == opening + timedelta(days=1)


def test_narrowed_window_fits_one_wider_window_of_its_day_and_zone() -> None:
    wide = [window("08:00", "18:00", days=["mon", "tue"]), window("10:00", "12:00", days=["wed"])]
    assert windows_narrow([window("09:00", "17:00", days=["mon"])], wide)
    assert windows_narrow([window("10:00", "12:00", days=["mon", "wed"])], wide)
    assert not windows_narrow([window("09:00", "17:00", days=["mon", "wed"])], wide)
    assert not windows_narrow([window("09:00", "17:00", "Europe/Paris", days=["mon"])], wide)
    assert not windows_narrow([window("07:59", "17:00", days=["mon"])], wide)
    assert not windows_narrow([window("17:00", "07:00", days=["mon"])], wide)
    assert windows_narrow([window("23:00", "00:00")], [window("22:00", "06:00")])
    # A day that only the end of yesterday's window reaches is not that window's day.
    assert not windows_narrow([window("01:00", "02:00")], [window("22:00", "06:00")])


@pytest.mark.parametrize(
    ("period", "start", "end"),
    [
        ("day", "2026-11-25", "2026-11-25T23:00:00"),
        ("week", "2026-11-23", "2026-11-29T23:00:00"),
        ("month", "2026-11-01", "2026-11-30T23:00:00"),
        ("total", "total", None),
    ],
)
def test_a_period_begins_at_local_midnight(period: str, start: str, end: str | None) -> None:
    now = local("2026-11-25T00:00:01")
    assert period_start(period, "Europe/Berlin", now) == start
    assert period_end(period, "Europe/Berlin", now) == (utc(end) if end else None)


@pytest.mark.parametrize(
    ("zone", "now", "end"),
    [
        ("Europe/Berlin", "2026-03-28T23:30:00", "2026-03-29T22:00:00"),  # a day of 23 h
        ("Europe/Berlin", "2026-10-24T22:30:00", "2026-10-25T23:00:00"),  # a day of 25 h
        ("Asia/Beirut", "2026-03-28T12:00:00", "2026-03-28T22:00:00"),  # its midnight is skipped
        ("Africa/Cairo", "2026-10-29T12:00:00", "2026-10-29T22:00:00"),  # 24:00 becomes 23:00 first
        (
            "Pacific/Apia",
            "2011-12-29T12:00:00",
            "2011-12-30T10:00:00",
        ),  # its whole next day is skipped
    ],
)
def test_a_day_ends_at_the_first_instant_of_another_date(zone: str, now: str, end: str) -> None:
    at = period_end("day", zone, utc(now))
    assert at == utc(end)
    before = period_start("day", zone, at - timedelta(seconds=1))
    assert before == period_start("day", zone, utc(now)) < period_start("day", zone, at)


def test_december_ends_in_the_next_year_and_weeks_begin_on_monday() -> None:
    assert period_end("month", "UTC", utc("2026-12-31T23:59:59")) == utc("2027-01-01T00:00:00")
    assert period_start("week", "UTC", utc("2027-01-03T12:00:00")) == "2026-12-28"
    assert period_end("month", "UTC", utc("2028-02-01T00:00:00")) == utc("2028-03-01T00:00:00")


def test_a_window_that_the_clock_jumps_into_opens_at_the_very_second() -> None:
    jump = utc("2026-03-29T01:00:00")
    for seconds in range(1, 9):
        now = jump - timedelta(hours=2, seconds=seconds)
        assert next_opening((window("02:10", "03:30"),), now) == jump
