"""Output of the command line, with unprintable characters escaped: most of the text is untrusted.

All output of `python -m agentauth.sdk` goes through here, except argparse's. `verify_log` and
`verify_proof`, run as programs of their own, print their own JSON.
"""

import json
import sys
from collections.abc import Mapping
from typing import TextIO

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.untrusted_text import printable


def show_json(answer: Mapping[str, object]) -> None:
    """One JSON object on stdout, in ASCII."""
    print(json.dumps(answer, default=str))


def show_lines(answer: Mapping[str, object]) -> None:
    """Aligned `name value` lines.

    Values that are not text are JSON; further lines of a text are indented, so that none looks like
    a name.
    """
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
    """`text`, with escapes for characters that the encoding of `stream` lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
