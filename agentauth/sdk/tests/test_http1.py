"""The reader of answers: the same whatever the pieces; what two readers could frame differently is
refused.
"""

import pytest

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.sdk.http1 import Answer, AnswerReader, Target

OK = b"HTTP/1.1 200 OK\r\n"
PLAIN = OK + b"Content-Length: 5\r\nX-A: 1\r\nx-a: 2\r\n\r\nhello"
CHUNKED = (
    OK + b"Transfer-Encoding: Chunked\r\n\r\n2;x=y\r\nhe\r\n3\r\nllo\r\n0\r\nTrailer: 1\r\n\r\n"
)
EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + PLAIN
TO_THE_END = OK + b"\r\nhello"
WHOLE = {"plain": PLAIN, "chunked": CHUNKED, "early": EARLY, "to the end": TO_THE_END}
HUGE = b"X: " + b"x" * 70_000 + b"\r\n"


def read(raw: bytes, size: int = 65_536, *, max_bytes: int = 100) -> AnswerReader:
    """The reader after these bytes in pieces, and the end of the connection if one is needed."""
    reader = AnswerReader("The registry", max_bytes)
    whole = False
    for start in range(0, len(raw), size):
        assert not whole
        whole = reader.feed(raw[start : start + size])
    assert whole or reader.feed(b"")
    return reader


@pytest.mark.parametrize("size", [1, 7, 65_536])
@pytest.mark.parametrize("raw", WHOLE.values(), ids=WHOLE)
def test_an_answer_is_the_same_in_pieces_of_any_size(raw: bytes, size: int) -> None:
    answer = read(raw, size).answer()
    assert (answer.status, answer.body) == (200, b"hello")


def test_names_of_headers_are_in_lower_case_and_joined() -> None:
    assert read(PLAIN).answer() == Answer(200, {"content-length": "5", "x-a": "1, 2"}, b"hello")


@pytest.mark.parametrize(
    ("raw", "reusable"),
    [
        (PLAIN, True),
        (CHUNKED, True),
        (EARLY, True),
        (TO_THE_END, False),
        (OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n", False),
        (OK + b"Connection: Keep-Alive\r\nContent-Length: 0\r\n\r\n", True),
        (OK + b"Connection: keep-alive, close\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False),
        # The start of a second answer, that nothing asked for.
        (PLAIN + b"HTTP", False),
    ],
)
def test_a_connection_is_kept_only_after_a_plain_end(raw: bytes, reusable: bool) -> None:
    assert read(raw).is_reusable is reusable


def test_a_connection_is_not_kept_before_the_end() -> None:
    reader = AnswerReader("The registry", 100)
    assert not reader.feed(PLAIN[:-1])
    assert not reader.is_reusable


BROKEN = {
    "nothing": b"",
    "half a head": PLAIN[:20],
    "half a body": PLAIN[:-1],
    "half a chunk": CHUNKED[:-10],
    "no HTTP": b"SSH-2.0-x\r\n\r\n",
    "HTTP/2": b"HTTP/2 200\r\n\r\n",
    "status of four digits": b"HTTP/1.1 2000 OK\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching\r\n\r\n" + PLAIN,
    "a bare line feed": OK + b"A: 1\nContent-Length: 5\r\n\r\nhello",
    "a bare carriage return": OK + b"A: 1\rContent-Length: 5\r\n\r\nhello",
    "a space before the colon": OK + b"Content-Length : 5\r\n\r\nhello",
    "a folded line": OK + b"Content-Length: 5\r\n A: 1\r\n\r\nhello",
    "a line without a colon": OK + b"Content-Length\r\n\r\nhello",
    "two lengths": OK + b"Content-Length: 5\r\nContent-Length: 4\r\n\r\nhello",
    "a signed length": OK + b"Content-Length: +5\r\n\r\nhello",
    "length and chunks": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks of HTTP/1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a chunk of no size": OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
    "a negative chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
    "a chunk without an end": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n",
    "compressed": OK + b"Content-Encoding: gzip\r\nContent-Length: 5\r\n\r\nhello",
    "a long body": OK + b"Content-Length: 101\r\n\r\n",
    "long chunks": OK + b"Transfer-Encoding: chunked\r\n\r\n60\r\n" + b"x" * 96 + b"\r\n5\r\n",
    "a long rest": OK + b"\r\n" + b"x" * 101,
    "a long head": OK + HUGE + b"Content-Length: 0\r\n\r\n",
    "a head without an end": OK + HUGE,
    "long heads together": b"HTTP/1.1 103 Early\r\nA: " + b"x" * 60_000 + b"\r\n\r\n" + OK
    + b"A: " + b"x" * 6_000 + b"\r\n\r\n",
    "a long line of a chunk": OK + b"Transfer-Encoding: chunked\r\n\r\n1;" + b"x" * 5_000,
    "long trailers": OK + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: x\r\n" * 12_000,
}  # fmt: skip


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_an_answer_that_is_broken_is_lost(raw: bytes) -> None:
    with pytest.raises(TemporarilyUnavailableError, match=r"The registry (sent|closed)"):
        read(raw)


def test_a_request_is_one_piece_with_the_credentials() -> None:
    target = Target.of("https://registry.example.com", "id", "geheim")
    assert (target.host, target.port, target.tls) == ("registry.example.com", 443, True)
    head, body = target.post("/v1/verify", b"{}", "key").split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /v1/verify HTTP/1.1"
    assert {"Host: registry.example.com", "Content-Length: 2", "Idempotency-Key: key"} < set(lines)
    assert "Authorization: Basic aWQ6Z2VoZWlt" in lines
    assert body == b"{}"
    assert b"Idempotency-Key" not in target.post("/v1/verify/batch", b"{}", None)
    assert "aWQ6Z2VoZWlt" not in repr(target)


def test_a_port_stands_in_the_host_header() -> None:
    target = Target.of("http://localhost:8000", "id", "secret")
    assert (target.host, target.port, target.tls) == ("localhost", 8000, False)
    assert b"Host: localhost:8000\r\n" in target.head
