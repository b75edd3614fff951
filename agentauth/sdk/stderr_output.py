"""Lines on stderr, with unprintable characters escaped: most of the text is untrusted."""

import sys
from typing import TextIO

from agentauth.protocol.untrusted_text import printable


def print_stderr(line: str) -> None:
    """One line on stderr, at once."""
    print(encodable(printable(line), sys.stderr), file=sys.stderr, flush=True)


def encodable(text: str, stream: TextIO) -> str:
    """`text`, with escapes for characters that the encoding of `stream` lacks."""
    encoding = stream.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
