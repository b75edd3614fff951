"""Output of the demo: plain lines, one table, colour only on a terminal that wants it."""

import os
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Final

GREEN: Final = "32"
RED: Final = "31"
BOLD: Final = "1"
DIM: Final = "2"
_NARROWEST: Final = 72


def styled(text: str, *styles: str) -> str:
    """`text` in colour on a terminal; unchanged in a pipe, a file, or with NO_COLOR set."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{';'.join(styles)}m{text}\033[0m"


def say(text: str = "") -> None:
    """Print one line and flush it, so that the reader of a pipe sees it at once."""
    print(text, flush=True)


def heading(text: str) -> None:
    """Print a heading after an empty line."""
    say()
    say(styled(text, BOLD))


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], colours: Sequence[str]) -> None:
    """Print columns as wide as their content; the last takes the rest of the line and wraps."""
    widths = [max(len(row[column]) for row in (titles, *rows)) for column in range(len(titles) - 1)]
    indent = sum(widths) + 2 * len(widths)
    columns = max(shutil.get_terminal_size((110, 24)).columns, _NARROWEST)
    room = max(columns - indent, 24)
    say(styled(_line(titles, widths), BOLD))
    say(styled("  ".join("─" * width for width in (*widths, min(room, _widest(rows)))), DIM))
    for row, colour in zip(rows, colours, strict=True):
        first, *more = textwrap.wrap(row[-1], room) or [""]
        say(styled(row[0].ljust(widths[0]), colour) + "  " + _line((*row[1:-1], first), widths[1:]))
        for line in more:
            say(" " * indent + line)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells[:-1], widths, strict=True)]
    return "  ".join((*padded, cells[-1])).rstrip()


def _widest(rows: Sequence[Sequence[str]]) -> int:
    return max((len(row[-1]) for row in rows), default=0)
