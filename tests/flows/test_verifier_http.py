"""The verifier's server and the web server are sent the same bytes, in forms that no client of ours sends."""

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_web_server import exchange
from tests.live import OWN, LiveRegistry, LiveServer
from tests.pace import within
from tests.postgres import free_port

pytestmark = pytest.mark.flow
APPLICATION = "tests.plain_app:application"


class Verifier(LiveServer):
    """The verifier's server with an application of tests behind it."""

    def __init__(self, directory: Path, *, workers: int = 1) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self.env = {name: value for name, value in os.environ.items() if name not in OWN}
        self.env |= {"VAR_DIR": str(directory), "WEB_CONCURRENCY": str(workers)}
        server = [sys.executable, "-m", "gunicorn", "-c", "python:agentauth.verifier_server"]
        self.command = [*server, "--bind", f"127.0.0.1:{self.port}", APPLICATION]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    made = LiveRegistry(tmp_path_factory.mktemp("web"), workers=1, env={"LOG_FORMAT": "json"})
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    made = Verifier(tmp_path_factory.mktemp("verifier"))
    made.start()
    yield made
    made.stop()
    # Whatever was sent, nothing failed in the server.
    assert "Traceback" not in made.log.read_text()


GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\n"
END = b"Connection: close\r\n\r\n"


def line(*lines: bytes, first: bytes = GET, body: bytes = b"") -> bytes:
    return first + b"".join(each + b"\r\n" for each in lines) + END + body


# Bytes, and the status of both servers.
SAME: dict[str, tuple[bytes, int]] = {
    "a plain request": (line(), 200),
    "a body": (line(b"Content-Length: 2", first=POST, body=b"{}"), 401),
    "a body that nobody needs": (line(b"Content-Length: 2", body=b"{}"), 200),
    "no body at all": (line(first=POST), 401),
    # Header lines
    "two hosts": (line(b"Host: evil.example"), 400),
    "two lengths": (line(b"Content-Length: 2", b"Content-Length: 3", first=POST, body=b"{}"), 400),
    "one length twice": (line(b"Content-Length: 2", b"Content-Length: 2", first=POST, body=b"{}"), 400),
    "lengths in a list": (line(b"Content-Length: 2, 2", first=POST, body=b"{}"), 400),
    "two media types": (line(b"Content-Type: a/b", b"Content-Type: c/d", first=POST), 400),
    "a folded line": (line(b"X-A: a", b" b"), 400),
    "a folded first line": (line(b" X-A: a"), 400),
    "a NUL in a value": (line(b"X-A: a\0b"), 400),
    "a CR in a value": (line(b"X-A: a\rb"), 400),
    "a LF in a value": (line(b"X-A: a\nX-B: b"), 400),
    "a bell in a value": (line(b"X-A: a\x07b"), 400),
    "bytes beyond ASCII in a value": (line(b"X-A: \xff\xfe"), 200),
    "a name with a space": (line(b"X A: b"), 400),
    "a space before the colon": (line(b"X-A : b"), 400),
    "a length before a space": (line(b"Content-Length : 2", first=POST, body=b"{}"), 400),
    "a name beyond ASCII": (line(b"X-\xc3\xa4: b"), 400),
    "no name": (line(b": b"), 400),
    "no colon": (line(b"X-A"), 400),
    "an empty value": (line(b"X-A:"), 200),
    "a name with an underscore": (line(b"X_A: b"), 200),
    # Length and chunks
    "a negative length": (line(b"Content-Length: -1", first=POST), 400),
    "a signed length": (line(b"Content-Length: +2", first=POST, body=b"{}"), 400),
    "a length in hex": (line(b"Content-Length: 0x2", first=POST, body=b"{}"), 400),
    "a length with an exponent": (line(b"Content-Length: 1e3", first=POST), 400),
    "a length in other digits": (line("Content-Length: ٢".encode(), first=POST), 400),
    "a length that overflows": (line(b"Content-Length: " + b"9" * 40, first=POST), 400),
    "a length beyond what is taken": (line(b"Content-Length: 2000000", first=POST, body=b"x" * 10), 413),
    "length and chunks": (line(b"Content-Length: 5", b"Transfer-Encoding: chunked", first=POST, body=b"0\r\n\r\n"), 400),
    "chunks": (line(b"Transfer-Encoding: chunked", first=POST, body=b"2\r\n{}\r\n0\r\n\r\n"), 400),
    "chunks with an extension": (line(b"Transfer-Encoding: chunked", first=POST, body=b'2;a="b\r\nc"\r\n{}\r\n0\r\n\r\n'), 400),
    "chunks with a trailer": (line(b"Transfer-Encoding: chunked", first=POST, body=b"0\r\nHost: b\r\n\r\n"), 400),
    "chunked twice": (line(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", first=POST), 400),
    "chunked not last": (line(b"Transfer-Encoding: chunked, identity", first=POST), 400),
    "chunks in capitals": (line(b"TRANSFER-ENCODING: CHUNKED", first=POST, body=b"0\r\n\r\n"), 400),
    # Line ends
    "LF alone": (GET.replace(b"\r\n", b"\n") + b"\n", 400),
    "LF alone at the end": (GET + b"\n", 400),
    "CR alone": (GET.replace(b"\r\n", b"\r") + b"\r\r\n\r\n", 400),
    "two empty lines first": (b"\r\n\r\n" + line(), 400),
    # The first line
    "no version": (b"GET /health/live\r\n\r\n", 400),
    "version 1.0": (b"GET /health/live HTTP/1.0\r\nHost: localhost\r\n\r\n", 200),
    "version 2.0": (b"GET /health/live HTTP/2.0\r\nHost: localhost\r\n\r\n", 400),
    "the preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "another protocol": (b"GET /health/live FTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    "two spaces": (line(first=b"GET  /health/live HTTP/1.1\r\nHost: localhost\r\n"), 200),
    "a tab": (line(first=b"GET\t/health/live HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "a method in small letters": (line(first=b"get /health/live HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "a target with a NUL": (line(first=b"GET /health/live\0 HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "a target beyond ASCII": (line(first=b"GET /health/l\xc3\xadve HTTP/1.1\r\nHost: localhost\r\n"), 400),
    "no host": (b"GET /health/live HTTP/1.1\r\n" + END, 200),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\n" * 8, 400),
    # Sizes
    "a long header line": (line(b"X-A: " + b"x" * 8_000), 200),
    "a header line of 9 kB": (line(b"X-A: " + b"x" * 9_000), 431),
    "a header line of 70 kB": (line(b"X-A: " + b"x" * 70_000), 431),
    "a proof of 9 kB": (line(b"DPoP: " + b"x" * 9_000), 431),
    "60 header lines": (line(*(b"X-%d: y" % number for number in range(60))), 200),
    "100 header lines": (line(*(b"X-%d: y" % number for number in range(100))), 431),
    "a first line of 5 kB": (line(first=b"GET /health/live?" + b"x" * 5_000 + b" HTTP/1.1\r\nHost: localhost\r\n"), 414),
    # Spellings of an address
    "an escaped address": (line(first=b"POST /v1/%76erify HTTP/1.1\r\nHost: localhost\r\n"), 404),
    "a doubled slash": (line(first=b"GET //health/live HTTP/1.1\r\nHost: localhost\r\n"), 404),
    "an address with dots": (line(first=b"POST /v1/x/../verify HTTP/1.1\r\nHost: localhost\r\n"), 404),
    "an upgrade": (line(b"Upgrade: websocket", b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: " + b"x" * 22 + b"=="), 200),
}  # fmt: skip


STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def statuses(answers: bytes) -> list[int]:
    return [int(each) for each in STATUS.findall(answers)]


@pytest.mark.parametrize(("sent", "status"), SAME.values(), ids=SAME)
def test_DJ_2_DJ_6_DJ_7_both_servers_answer_alike(
    web: LiveRegistry, verifier: LiveServer, sent: bytes, status: int
) -> None:
    begun = time.monotonic()
    # One request, one answer, and nobody waited for more of it.
    assert [statuses(exchange(each, sent)) for each in (web, verifier)] == [[status], [status]]
    assert time.monotonic() - begun < within(5)


def test_DJ_7_headers_without_number_are_refused(web: LiveRegistry, verifier: LiveServer) -> None:
    sent = line(*(b"X-%d: y" % number for number in range(20_000)))
    assert statuses(exchange(web, sent)) == [400]
    assert statuses(exchange(verifier, sent)) == [431]


def told(answer: bytes) -> dict[str, Any]:
    """What the application behind the server was given."""
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_DJ_2_two_lines_of_a_name_arrive_as_two(verifier: LiveServer) -> None:
    """Joined or dropped, the application could not refuse them."""
    given = [b"Authorization: a", b"Authorization: b", b"DPoP: c", b"dpop: d", b"Idempotency-Key: e"]
    headers = told(exchange(verifier, line(*given)))["headers"]
    assert headers[1:-1] == [
        ["authorization", "a"],
        ["authorization", "b"],
        ["dpop", "c"],
        ["dpop", "d"],
        ["idempotency-key", "e"],
    ]


def test_DJ_4_a_name_with_an_underscore_never_arrives(verifier: LiveServer) -> None:
    given = [b"Content_Length: 5", b"X_Forwarded_For: a", b"SCRIPT_NAME: /a", b"X-Forwarded-Proto: https"]
    names = [name for name, _ in told(exchange(verifier, line(*given)))["headers"]]
    assert names == ["host", "x-forwarded-proto", "connection"]


@pytest.mark.parametrize(
    "target", ["/v1/%76erify", "http://localhost/v1/verify", "/v1/verify%3F", "/v1/verify;x"]
)
def test_DJ_3_an_address_arrives_as_it_was_sent(verifier: LiveServer, target: str) -> None:
    """The raw path alone has one spelling; the other is decoded."""
    sent = line(first=f"GET {target} HTTP/1.1\r\nHost: localhost\r\n".encode())
    assert told(exchange(verifier, sent))["raw_path"] == target
