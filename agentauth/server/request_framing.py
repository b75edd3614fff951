"""Collects the bytes of a connection until they are a whole request, within time limits.

No I/O; both servers use it. It only finds where a request ends: gunicorn's parser reads the same
bytes again and has the last word.
"""

import re
import time
from contextvars import ContextVar
from typing import Final

# Seconds a client has to send the head of a request, and all of it.
HEAD_SECONDS: Final = 10
REQUEST_SECONDS: Final = 20
# Seconds a client has to read an answer that could not be sent at once.
ANSWER_SECONDS: Final = 30
# Seconds a client has to hang up after we did.
LINGER_SECONDS: Final = 2
# The largest body accepted anywhere (agentauth/middleware.py). A larger Content-Length is refused.
MAX_BODY_BYTES: Final = 1024 * 1024
# Memory for all unanswered requests of a process.
MAX_HELD_BYTES: Final = 64 * 1024 * 1024

# How long (s) this thread's request had waited for a thread.
WAITED: Final[ContextVar[float]] = ContextVar("agentauth_waited", default=0.0)

# A line that ends in a bare LF ends the head too: the parser refuses it.
_END_OF_HEAD: Final = re.compile(rb"\r\n\r\n|(?<!\r)\n")
# Every header that may determine where the body ends, and the digits of a plain Content-Length.
_FRAMING: Final = re.compile(
    rb"\r\n(?:content-length:[ \t]*([0-9]{1,7})[ "
    rb"\t]*(?=\r\n)|(?:content-length|transfer-encoding)[ \t]*:)",
    re.IGNORECASE,
)
_EXPECTS: Final = re.compile(rb"\r\nexpect:[ \t]*100-continue[ \t]*\r\n", re.IGNORECASE)


class Incoming:
    """Bytes received on one connection that no request has taken yet."""

    def __init__(self) -> None:
        # Set when the end of a request is unknown: what follows is then not read as another
        # request.
        self.last = False
        self.start(b"")

    def start(self, left: bytes) -> None:
        """Wait for the next request, of which `left` has arrived already."""
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
                # The body is too large, or its end unknown (chunks, several lengths): do not wait
                # for any of it.
                self.last, length = True, 0
            self.head, self.wanted = len(head), len(head) + length
            self.patience = REQUEST_SECONDS
            self.expects = b" HTTP/1.1\r\n" in head and bool(_EXPECTS.search(head))
        return len(self.data) >= self.wanted

    def _end_of_head(self) -> int:
        """Length of the head, 0 if it goes on. Counting lines costs a tenth of a bare-LF search."""
        data, begin = self.data, self.searched
        empty_line = data.find(b"\r\n\r\n", begin)
        end = len(data) if empty_line < 0 else empty_line + 4
        if data.count(b"\n", begin, end) != data.count(b"\r\n", begin, end):
            # A bare LF, or an LF whose CR stands just before `begin`.
            found = _END_OF_HEAD.search(data, begin)
            return found.end() if found else 0
        return 0 if empty_line < 0 else end
