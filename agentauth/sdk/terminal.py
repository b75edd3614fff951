"""What the command line shows: the one place that writes to stdout and stderr, since most of it others wrote."""

import json
import sys
from collections.abc import Mapping
from typing import TextIO

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.names import printable


def show_json(answer: Mapping[str, object]) -> None:
    """One JSON object on stdout, in ASCII."""
    print(json.dumps(answer, default=str))


def show_lines(answer: Mapping[str, object]) -> None:
    """`name  value` lines, aligned; what is not text is JSON, and further lines of a text are indented: none is taken for a name."""
    shown = {name: value for name, value in answer.items() if value not in (None, "")}
    width = max((len(name) for name in shown), default=0)
    for name, value in shown.items():
        text = value.replace("\r\n", "\n") if isinstance(value, str) else json.dumps(value)
        lines = f"\n{'':<{width}}  ".join(map(printable, text.split("\n")))
        print(_encodable(f"{name.replace('_', ' '):<{width}}  {lines}", sys.stdout))


def show_error(error: AgentAuthError) -> None:
    """One line on stderr."""
    reason = f" ({error.code}/{error.reason})" if error.reason else f" ({error.code})"
    tell(f"error: {error.description}{reason}")


def tell(line: str) -> None:
    """One line on stderr, at once."""
    print(_encodable(printable(line), sys.stderr), file=sys.stderr, flush=True)


def _encodable(text: str, stream: TextIO) -> str:
    """`text` with an escape for each character that the encoding of `stream` lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
