"""The bytes of one connection until they are a whole request, and how long that may take. No I/O, the same for both servers.

It only says when a request is all here; a parser reads the same bytes again and has the last word.
"""

import re
import time
from contextvars import ContextVar
from typing import Final

# Seconds to send the head of a request, and all of it.
HEAD_SECONDS: Final = 10
REQUEST_SECONDS: Final = 20
# To take an answer that does not go out at once, all of it.
ANSWER_SECONDS: Final = 30
# To hang up, once we have.
LINGER_SECONDS: Final = 2
# The largest body that is taken at all (agentauth/middleware.py); a larger one is refused by its length.
MAX_BODY_BYTES: Final = 1024 * 1024
# Of all requests of a process that are not answered yet.
MAX_HELD_BYTES: Final = 64 * 1024 * 1024

# How long (s) the request that this thread answers had waited for a thread.
WAITED: Final[ContextVar[float]] = ContextVar("agentauth_waited", default=0.0)

# A line that ends in LF alone ends a head too: the parser refuses it.
_END_OF_HEAD: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n")
# Everything that may say where a body ends; its digits where they are plain.
_FRAMING: Final = re.compile(
    rb"\r\n(?:content-length:[ \t]*([0-9]{1,7})[ \t]*(?=\r\n)|(?:content-length|transfer-encoding)[ \t]*:)",
    re.IGNORECASE,
)
_EXPECTS: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)


class Incoming:
    """What came in on one connection and no request has taken yet."""

    def __init__(self) -> None:
        # Where a request has no end we know, what follows it is no other request.
        self.last = False
        self.start(b"")

    def start(self, left: bytes) -> None:
        """Wait for the next request, of which `left` is here already."""
        self.data = bytearray(left)
        self.head = self.wanted = self.searched = 0
        self.expects = False
        self.begun, self.patience = time.monotonic(), HEAD_SECONDS

    def is_whole(self) -> bool:
        """Whether all of the request is here, or enough to refuse it."""
        if not self.wanted:
            end = self._end_of_head()
            self.searched = max(0, len(self.data) - 3)
            if not end:
                return False
            head = bytes(self.data[:end])
            lengths = _FRAMING.findall(head)
            length = int(lengths[0] or -1) if len(lengths) == 1 else -len(lengths)
            if not 0 <= length <= MAX_BODY_BYTES:
                # A body that is refused whatever it holds, or whose end is unknown: none of it is waited for.
                self.last, length = True, 0
            self.head, self.wanted = len(head), len(head) + length
            self.patience = REQUEST_SECONDS
            self.expects = b" HTTP/1.1\r\n" in head and bool(_EXPECTS.search(head))
        return len(self.data) >= self.wanted

    def _end_of_head(self) -> int:
        """How long the head is, 0 if it goes on. Counting lines costs a tenth of looking at each byte for a bare LF."""
        data, begin = self.data, self.searched
        empty_line = data.find(b"\r\n\r\n", begin)
        end = len(data) if empty_line < 0 else empty_line + 4
        if data.count(b"\n", begin, end) != data.count(b"\r\n", begin, end):
            # An LF alone, or one whose CR was looked at last time.
            found = _END_OF_HEAD.search(data, begin)
            return found.end() if found else 0
        return 0 if empty_line < 0 else end
