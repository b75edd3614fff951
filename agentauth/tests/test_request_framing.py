"""Where a request ends, however its bytes arrive."""

import re

import pytest

from agentauth.server.request_framing import MAX_BODY_BYTES, Incoming

# The definition: the first empty line, or the first LF without CR.
END = re.compile(rb"\r\n\r\n|(?<!\r)\n")
HEADS = [
    b"GET / HTTP/1.1\r\nA: b\r\n\r\n",
    b"GET / HTTP/1.1\r\nA: b\n\r\n",
    b"GET / HTTP/1.1\n\n",
    b"GET / HTTP/1.1\r\n\n\r\n",
    b"GET / HTTP/1.1\r\r\n\r\r\n\r\n",
    b"\n",
    b"\r\n\r\n",
    b"\r\n\n",
    b"\r\nGET / HTTP/1.1\r\n\r\n\n",
    b"GET / HTTP/1.1\r\nA: b\r\n",
]


@pytest.mark.parametrize("head", HEADS)
def test_DJ_7_a_head_ends_at_the_same_byte_in_whatever_pieces_it_comes(head: bytes) -> None:
    found = END.search(head)
    for size in (len(head), 1, 2, 3, 4, 5):
        incoming = Incoming()
        for start in range(0, len(head), size):
            incoming.data += head[start : start + size]
            if incoming.is_whole():
                break
        assert incoming.head == (found.end() if found else 0), size


@pytest.mark.parametrize(
    ("lines", "length"),
    [
        (b"", 0),
        (b"Content-Length: 5\r\n", 5),
        (b"content-LENGTH:\t5 \r\n", 5),
        (b"Content-Length: %d\r\n" % MAX_BODY_BYTES, MAX_BODY_BYTES),
        (b"X-Content-Length: 5\r\n", 0),
        (b"X: Content-Length: 5\r\n", 0),
    ],
)
def test_DJ_7_a_body_is_waited_for(lines: bytes, length: int) -> None:
    incoming = Incoming()
    incoming.data += b"POST / HTTP/1.1\r\n" + lines + b"\r\n"
    assert incoming.is_whole() is (length == 0)
    assert (incoming.wanted - incoming.head, incoming.last) == (length, False)
    incoming.data += b"x" * length
    assert incoming.is_whole()


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: %d\r\n" % (MAX_BODY_BYTES + 1),
        b"Content-Length: 5\r\nContent-Length: 5\r\n",
        b"Content-Length : 5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 5, 5\r\n",
        b"Content-Length: 00000005\r\n",
        b"Content-Length:\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding : x\r\nContent-Length: 5\r\n",
    ],
)
def test_DJ_7_body_of_unknown_length_ends_the_connection_unread(lines: bytes) -> None:
    incoming = Incoming()
    incoming.data += b"POST / HTTP/1.1\r\n" + lines + b"\r\n"
    assert incoming.is_whole()
    assert (incoming.wanted, incoming.last) == (incoming.head, True)
