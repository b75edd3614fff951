"""What the verifier's server passes to its application, as reported by a test application.

tests/production/test_http.py tests what both of our servers answer to such requests.
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flows.test_web_server import exchange
from tests.live import OWN, LiveServer
from tests.postgres import free_port

pytestmark = pytest.mark.flow
APPLICATION = "tests.plain_app:application"


class Verifier(LiveServer):
    """The verifier's server with a test application."""

    def __init__(self, directory: Path, *, workers: int = 1) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = directory / "server.log"
        self.env = {name: value for name, value in os.environ.items() if name not in OWN}
        self.env |= {"VAR_DIR": str(directory), "WEB_CONCURRENCY": str(workers)}
        server = [
            sys.executable,
            "-m",
            "gunicorn",
            "-c",
            "python:agentauth.server.verifier_gunicorn",
        ]
        self.command = [*server, "--bind", f"127.0.0.1:{self.port}", APPLICATION]


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    made = Verifier(tmp_path_factory.mktemp("verifier"))
    made.start()
    yield made
    made.stop()
    # No input made the server fail.
    assert "Traceback" not in made.log.read_text()


GET = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"
POST = b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\n"
END = b"Connection: close\r\n\r\n"


def line(*lines: bytes, first: bytes = GET, body: bytes = b"") -> bytes:
    return first + b"".join(each + b"\r\n" for each in lines) + END + body


STATUS = re.compile(rb"HTTP/1\.[01] (\d{3}) ")


def statuses(answers: bytes) -> list[int]:
    return [int(each) for each in STATUS.findall(answers)]


def read_echo(answer: bytes) -> dict[str, Any]:
    """What the application received."""
    found: dict[str, Any] = json.loads(answer.partition(b"\r\n\r\n")[2])
    return found


def test_DJ_2_two_lines_of_a_name_arrive_as_two(verifier: LiveServer) -> None:
    """If they were joined or dropped, the application could not refuse them."""
    given = [
        b"Authorization: a",
        b"Authorization: b",
        b"DPoP: c",
        b"dpop: d",
        b"Idempotency-Key: e",
    ]
    headers = read_echo(exchange(verifier, line(*given)))["headers"]
    assert headers[1:-1] == [
        ["authorization", "a"],
        ["authorization", "b"],
        ["dpop", "c"],
        ["dpop", "d"],
        ["idempotency-key", "e"],
    ]


def test_DJ_4_a_name_with_an_underscore_never_arrives(verifier: LiveServer) -> None:
    given = [
        b"Content_Length: 5",
        b"X_Forwarded_For: a",
        b"SCRIPT_NAME: /a",
        b"X-Forwarded-Proto: https",
    ]
    names = [name for name, _ in read_echo(exchange(verifier, line(*given)))["headers"]]
    assert names == ["host", "x-forwarded-proto", "connection"]


@pytest.mark.parametrize(
    "target", ["/v1/%76erify", "http://localhost/v1/verify", "/v1/verify%3F", "/v1/verify;x"]
)
def test_DJ_3_an_address_arrives_as_it_was_sent(verifier: LiveServer, target: str) -> None:
    """Only the raw path has a single spelling; the other is decoded."""
    sent = line(first=f"GET {target} HTTP/1.1\r\nHost: localhost\r\n".encode())
    assert read_echo(exchange(verifier, sent))["raw_path"] == target
