"""Output of the command line, with unprintable characters escaped: most of the text is untrusted.

All output of `agentauth` goes through here or `sdk/stderr_output.py`, except Typer's help.
`verify_log` and `verify_log_proof`, run as programs of their own, print their own JSON.
"""

import json
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk.stderr_output import encodable, print_stderr

from .result import NEEDS_EXTRA, Outcome, Table

try:
    from rich.box import SIMPLE
    from rich.cells import chop_cells
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text
except ImportError as error:
    raise ImportError(NEEDS_EXTRA) from error

# Columns of a table that is not read in a terminal: wide enough to break no cell.
_WIDE: Final = 200
# Columns beside the indent; a terminal with fewer is not read.
_NARROW: Final = 8
_ONE_WORD: Final = re.compile(r"[!-~]+")


def show(outcome: Outcome, *, as_json: bool) -> None:
    """The result of a command on stdout: one JSON object, a table, or aligned lines."""
    if as_json:
        show_json(outcome.result)
    elif outcome.table is not None:
        show_table(outcome.table)
    else:
        show_lines(outcome.result)


def show_json(answer: Mapping[str, object]) -> None:
    """One JSON object on stdout, in ASCII."""
    print(json.dumps(answer, default=str))


def show_lines(answer: Mapping[str, object]) -> None:
    """Aligned `name value` lines.

    Values that are not text are JSON; further lines of a text are indented, also those that the
    terminal would break, so that none looks like a name.
    """
    shown = {name: value for name, value in answer.items() if value not in (None, "")}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        text = value.replace("\r\n", "\n") if isinstance(value, str) else json.dumps(value)
        lines = [encodable(printable(line), sys.stdout) for line in text.split("\n")]
        broken = f"\n{'':<{width}}  ".join(_broken(lines, width + 2))
        print(f"{name.replace('_', ' '):<{width}}  {broken}")


def _broken(lines: Sequence[str], indent: int) -> Iterator[str]:
    """The lines, those that a terminal would break in pieces that fit beside the indent.

    One without a blank cannot look like a name and its value: links and tokens stay whole, to be
    copied.
    """
    columns = shutil.get_terminal_size().columns - indent
    for line in lines:
        if _ONE_WORD.fullmatch(line) or columns < _NARROW or not sys.stdout.isatty():
            yield line
        else:
            yield from chop_cells(line, columns) or [""]


def show_table(table: Table) -> None:
    """Rows under headings, each cell on lines of its own."""
    drawn = RichTable(box=SIMPLE, pad_edge=False, show_edge=False)
    for column in table.columns:
        drawn.add_column(column.replace("_", " "), overflow="fold")
    for row in table.rows:
        # Text, since Rich reads markup in a plain string.
        drawn.add_row(*(Text(_cell(row.get(column))) for column in table.columns))
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(highlight=False, legacy_windows=False, width=width)
    with console.capture() as captured:
        console.print(drawn)
    for line in captured.get().splitlines():
        print(encodable(line.rstrip(), sys.stdout))


def show_error(error: AgentAuthError, *, as_json: bool) -> None:
    """One JSON object on stdout, or one line on stderr."""
    if as_json:
        body = {"error": error.code, "error_description": error.description, "reason": error.reason}
        show_json(body | error.fields)
        return
    reason = f" ({error.code}/{error.reason})" if error.reason else f" ({error.code})"
    print_stderr(f"error: {error.description}{reason}")


def spinner(text: str) -> AbstractContextManager[object]:
    """A moving sign on stderr while the block runs, if stderr is a terminal."""
    if not sys.stderr.isatty():
        return nullcontext()
    return Console(stderr=True).status(Text(printable(text)))


def _cell(value: object) -> str:
    if isinstance(value, list):
        return "\n".join(map(_cell, value))
    return "" if value is None else printable(str(value))
