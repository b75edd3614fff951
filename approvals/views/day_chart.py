"""A bar chart of days, as shapes for an SVG that the template draws without styles of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any, Final

from django.utils import formats
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from approvals import sentences

WIDTH: Final = 720
HEIGHT: Final = 220
# Room for the number at the top line, and for the days below the bars.
_TOP: Final = 26
_BOTTOM: Final = 34
_FLOOR: Final = HEIGHT - _BOTTOM
_BAR: Final = 0.68
# The least height of a bar that stands for something.
_LEAST: Final = 2.0


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of the chart: its name, the ending of its CSS class, and a number for each day."""

    name: str
    look: str
    numbers: Sequence[int]


def draw_days(days: Sequence[date], series: Sequence[Series]) -> dict[str, Any]:
    """The bars of each day, stacked from the bottom in the order of the series."""
    totals = [sum(each.numbers[index] for each in series) for index in range(len(days))]
    top = _round_up(max(totals, default=0))
    step = WIDTH / max(len(days), 1)
    bars = []
    for index, day in enumerate(days):
        base = float(_FLOOR)
        for each in series:
            if not each.numbers[index]:
                continue
            tall = max(_LEAST, each.numbers[index] / top * (_FLOOR - _TOP))
            base -= tall
            bars.append(
                {
                    "x": _digits(index * step + step * (1 - _BAR) / 2),
                    "y": _digits(base),
                    "width": _digits(step * _BAR),
                    "height": _digits(tall),
                    "look": each.look,
                    "title": _title(day, each.name, each.numbers[index]),
                }
            )
    return {
        "width": WIDTH,
        "height": HEIGHT,
        "floor": _FLOOR,
        "top": _TOP,
        "middle": (_FLOOR + _TOP) // 2,
        "label_y": HEIGHT - 10,
        "most": sentences.whole(top),
        "bars": bars,
        "labels": _labels(days, step),
    }


def _title(day: date, name: str, number: int) -> str:
    return _("%(day)s, %(name)s: %(n)s") % {
        "day": formats.date_format(day, pgettext("date format", "j F")),
        "name": name,
        "n": sentences.whole(number),
    }


def _labels(days: Sequence[date], step: float) -> list[dict[str, str]]:
    """The first, the middle and the last day."""
    marked = (0, (len(days) - 1) // 2, len(days) - 1)
    return [
        {
            "x": _digits({"start": 0, "end": WIDTH}.get(anchor, (index + 0.5) * step)),
            "anchor": anchor,
            "text": formats.date_format(days[index], pgettext("date format", "j F")),
        }
        for index, anchor in zip(marked, ("start", "middle", "end"), strict=True)
    ]


def _digits(number: float) -> str:
    """A coordinate: with a point in every language, and no longer than needed."""
    return f"{number:.1f}"


def _round_up(number: int) -> int:
    """The next of 1, 2, 4, 5, 10, 20, 40, 50, 100 …, so that the top line has a round number."""
    scale = 1
    while True:
        for step in (1, 2, 4, 5):
            if number <= step * scale:
                return step * scale
        scale *= 10
