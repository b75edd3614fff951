"""HTTP/1.1 for calls that must cost little: one request in one piece, one answer of bounded size.

No I/O. Only what a client of one registry needs (RFC 9112): an answer has a length, comes in
chunks or ends with the connection. It is never decompressed, and an interim answer is skipped.
"""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import httpx

from agentauth.protocol.errors import TemporarilyUnavailableError

# Of all heads of one answer together; the registry's are below 2 kB.
MAX_HEAD_BYTES: Final = 65_536
_MAX_CHUNK_LINE: Final = 4_096
_STATUS: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LENGTH: Final = re.compile(r"[0-9]{1,15}")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?", re.DOTALL)
_FINAL: Final = 200
_SWITCHING: Final = 101
_WITHOUT_BODY: Final = frozenset({204, 304})


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; names of headers are in lower case, repeated ones joined by a comma."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and the head that all of them have. The repr hides the credentials."""

    host: str
    port: int
    tls: bool
    head: bytes = field(repr=False)

    @classmethod
    def of(cls, url: str, client_id: str, client_secret: str) -> "Target":
        """The target at an origin. Raises httpx.InvalidURL for an impossible host name."""
        parts = httpx.URL(url)
        host = parts.raw_host.decode("ascii")
        pair = base64.b64encode(f"{client_id}:{client_secret}".encode()).decode()
        lines = (
            f"Host: {parts.netloc.decode('ascii')}",
            f"Authorization: Basic {pair}",
            "Accept: application/json",
            "Accept-Encoding: identity",
            "Content-Type: application/json",
            "User-Agent: agentauth-sdk",
        )
        tls = parts.scheme == "https"
        head = "".join(f"{line}\r\n" for line in lines).encode("ascii")
        return cls(host, parts.port or (443 if tls else 80), tls, head)

    def post(self, path: str, content: bytes, key: str | None) -> bytes:
        """One request. `path` and `key` are ours, so no caller can put a line into the head."""
        named = "" if key is None else f"Idempotency-Key: {key}\r\n"
        first = f"POST {path} HTTP/1.1\r\nContent-Length: {len(content)}\r\n{named}"
        return b"".join((first.encode("ascii"), self.head, b"\r\n", content))


class AnswerReader:
    """Reads one answer as its bytes arrive. `who` is the subject of its messages.

    Every method raises TemporarilyUnavailableError for an answer that is too long, compressed, cut
    off or not HTTP.
    """

    def __init__(self, who: str, max_bytes: int) -> None:
        self._who, self._max_bytes = who, max_bytes
        self._received = bytearray()
        self._head_bytes = 0
        self._status = 0
        self._headers: dict[str, str] = {}
        self._body = bytearray()
        # Bytes of the body that are missing; None if chunks or the end of the connection say.
        self._missing: int | None = None
        self._chunked = False
        self._in_chunk: int | None = None
        self._trailing = False
        self._closing = False
        self._is_whole = False

    @property
    def is_reusable(self) -> bool:
        """May the connection carry another request? Only once the answer is whole."""
        return self._is_whole and not self._closing and not self._received

    def feed(self, part: bytes) -> bool:
        """Take bytes as received, none at the end of the connection. True if the answer is
        whole.
        """
        if not part:
            return self._end()
        self._received += part
        while not self._status:
            if not self._read_head():
                return False
        self._is_whole = self._read_chunks() if self._chunked else self._read_body()
        return self._is_whole

    def answer(self) -> Answer:
        """The answer, once it is whole."""
        return Answer(self._status, self._headers, bytes(self._body))

    def _end(self) -> bool:
        if not self._status or self._chunked or self._missing is not None:
            raise self._broken("closed the connection before its answer was complete.")
        self._is_whole = self._closing = True
        return True

    def _read_head(self) -> bool:
        """Read a head if it has arrived; leave the status 0 if it was an interim one."""
        end = self._received.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._received)) + self._head_bytes > MAX_HEAD_BYTES:
            raise self._broken(f"sent a head of more than {MAX_HEAD_BYTES:,} bytes.")
        if end < 0:
            return False
        head = bytes(self._received[:end])
        del self._received[: end + 4]
        self._head_bytes += end + 4
        first, *lines = head.split(b"\r\n")
        match = _STATUS.fullmatch(first)
        if match is None or int(match[2]) == _SWITCHING:
            raise self._broken("sent an answer that is not HTTP.")
        if int(match[2]) >= _FINAL:
            self._headers = self._fields(lines)
            self._frame(int(match[2]), old=match[1] == b"0")
        return True

    def _fields(self, lines: list[bytes]) -> dict[str, str]:
        fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or _NAME.fullmatch(name) is None or b"\n" in value or b"\r" in value:
                raise self._broken("sent an answer that is not HTTP.")
            key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
            fields[key] = f"{fields[key]}, {text}" if key in fields else text
        return fields

    def _frame(self, status: int, *, old: bool) -> None:
        """Where the body ends. Whatever two readers could frame differently is refused."""
        headers = self._headers
        if headers.get("content-encoding", "identity").lower() != "identity":
            # A few bytes could decompress to gigabytes.
            raise self._broken("sent a compressed answer, which was not asked for.")
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None and (coding.lower() != "chunked" or length is not None or old):
            raise self._broken("sent an answer whose end is unclear.")
        if length is not None and _LENGTH.fullmatch(length) is None:
            raise self._broken("sent an answer whose end is unclear.")
        connection = headers.get("connection", "").lower()
        self._closing = old or connection not in {"", "keep-alive"}
        self._chunked = coding is not None
        if status in _WITHOUT_BODY:
            # Not reused: a server that sends a body all the same would answer the next question.
            self._chunked, self._missing, self._closing = False, 0, True
        elif length is not None:
            self._missing = int(length)
            self._check_size(self._missing)
        self._status = status

    def _read_body(self) -> bool:
        if self._missing is None:
            self._check_size(len(self._body) + len(self._received))
            self._body += self._received
            self._received.clear()
            return False
        part = self._received[: self._missing]
        self._body += part
        self._missing -= len(part)
        del self._received[: len(part)]
        return self._missing == 0

    def _read_chunks(self) -> bool:
        while True:
            if self._in_chunk is None:
                line = self._line()
                if line is None:
                    return False
                if self._trailing:
                    if not line:
                        return True
                    continue
                match = _CHUNK.fullmatch(line)
                if match is None:
                    raise self._broken("sent an answer that is not HTTP.")
                size = int(match[1], 16)
                self._check_size(len(self._body) + size)
                self._trailing = size == 0
                self._in_chunk = size or None
            else:
                if len(self._received) < self._in_chunk + 2:
                    return False
                if self._received[self._in_chunk : self._in_chunk + 2] != b"\r\n":
                    raise self._broken("sent an answer that is not HTTP.")
                self._body += self._received[: self._in_chunk]
                del self._received[: self._in_chunk + 2]
                self._in_chunk = None

    def _line(self) -> bytes | None:
        """The next line of a chunked body; None if it has not arrived."""
        end = self._received.find(b"\r\n")
        if (end if end >= 0 else len(self._received)) > _MAX_CHUNK_LINE:
            raise self._broken("sent an answer that is not HTTP.")
        if end < 0:
            return None
        line = bytes(self._received[:end])
        del self._received[: end + 2]
        self._head_bytes += end + 2 if self._trailing else 0
        if self._head_bytes > MAX_HEAD_BYTES:
            raise self._broken(f"sent a head of more than {MAX_HEAD_BYTES:,} bytes.")
        return line

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise self._broken(f"sent more than {self._max_bytes:,} bytes.")

    def _broken(self, what: str) -> TemporarilyUnavailableError:
        return TemporarilyUnavailableError(f"{self._who} {what}")
