"""Servers announce that they close a connection: a proxy would send other requests over it.

The tests count, idle, fill and stop servers of their own.
"""

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from benchmarks.cpu_time import children
from tests.flows.test_slow_senders import LIVE, THREADS, rest
from tests.flows.test_verifier_http import Verifier
from tests.live import LiveRegistry, LiveServer
from tests.time_limits import HANGS_SECONDS

# gunicorn's configuration changes the environment, which must not leak into this process.
with patch.dict(os.environ):
    from agentauth.server import verifier_gunicorn, web_gunicorn

pytestmark = pytest.mark.flow
LARGE = b"x" * 100_000
# How long nginx by default keeps an idle connection.
NGINX_IDLE_SECONDS = 60


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    env = {"TRUSTED_PROXIES": "1", "RATE_LIMITS": "on"}
    made = LiveRegistry(tmp_path_factory.mktemp("web"), workers=1, env=env)
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


@pytest.fixture(params=["web", "verifier"])
def server(request: pytest.FixtureRequest) -> LiveServer:
    """A server of each kind."""
    found: LiveServer = request.getfixturevalue(request.param)
    return found


@dataclass
class Answer:
    status: int
    # Whether it announces that the connection closes.
    closes: bool
    # What followed it on the connection.
    behind: bytes = b""


def next_answer(connection: socket.socket, received: bytes = b"") -> Answer:
    """The next answer with a final status."""
    while True:
        head, end, rest = received.partition(b"\r\n\r\n")
        if end and head.startswith(b"HTTP/1.1 100 "):
            received = rest
            continue
        size = body_size(head.lower(), rest) if end else None
        if size is not None and len(rest) >= size:
            return Answer(int(head[9:12]), b"\r\nconnection: close" in head.lower(), rest[size:])
        part = connection.recv(65_536)
        assert part, f"it hung up without an answer: {received!r}"
        received += part


def body_size(head: bytes, rest: bytes) -> int | None:
    """The length of the body for this lower-case head; None if incomplete. Chunks end in `rest`."""
    if b"\r\ntransfer-encoding: chunked" in head:
        end = rest.find(b"0\r\n\r\n")
        return None if end < 0 else end + 5
    length = re.search(rb"\r\ncontent-length: (\d+)", head)
    return int(length[1]) if length else 0


def is_true(connection: socket.socket, answer: Answer) -> bool:
    """Whether the connection closes if announced, and otherwise accepts another request."""
    if answer.closes:
        return not answer.behind and rest(connection) == b""
    connection.sendall(LIVE)
    return next_answer(connection, answer.behind).status == 200


def post(path: str, *lines: str, body: bytes = LARGE, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    head = (f"POST {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}", *lines, "", "")
    return "\r\n".join(head).encode() + body


FORM = ("Content-Type: application/x-www-form-urlencoded",)
JSON = ("Content-Type: application/json",)
CHUNKED = b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
# What is sent, the allowed statuses, and whether the connection is kept: it is if the request's end
# is known.
REFUSED: dict[str, tuple[bytes, set[int], bool]] = {
    "a page": (post("/nothing"), {403}, True),
    "no such call": (post("/v1/nothing", *JSON), {404}, True),
    "no credentials": (post("/v1/verify", *JSON), {401}, True),
    "wrong credentials": (post("/v1/verify", *JSON, "Authorization: Basic eDp5"), {401}, True),
    "a form": (post("/v1/introspect", *FORM), {401}, True),
    "all that is taken": (post("/v1/nothing", body=b"x" * 1_048_576), {404}, True),
    "more than is taken": (post("/v1/verify", body=b"x" * 1_200_000), {413}, False),
    "a length alone": (post("/v1/verify", length=2_000_000), {413}, False),
    "chunks": (CHUNKED + b"10000\r\n" + b"x" * 65_536 + b"\r\n0\r\n\r\n", {400}, False),
    "Expect": (post("/v1/verify", "Expect: 100-continue"), {401}, True),
    "Expect with too large a body": (
        post("/v1/verify", "Expect: 100-continue", body=b"", length=2_000_000), {413}, False,
    ),
}  # fmt: skip


@pytest.mark.parametrize("how", REFUSED)
def test_SA_11_a_connection_ends_only_where_that_is_said(server: LiveServer, how: str) -> None:
    sent, statuses, kept = REFUSED[how]
    if isinstance(server, Verifier):
        # The application of these tests answers any address.
        statuses = statuses | {401, 404}
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS_SECONDS) as connection:
        # The server reads on for only 2 s after its refusal: if this process gets no CPU meanwhile,
        # the rest of a large body finds it gone. Its answer can still be read.
        with suppress(ConnectionError):
            connection.sendall(sent)
        answer = next_answer(connection)
        assert answer.status in statuses
        assert answer.closes is not kept
        assert is_true(connection, answer)


def test_SA_11_calls_beyond_the_limit_keep_the_connection_too(web: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=HANGS_SECONDS) as connection:
        seen = set()
        for _ in range(500):
            connection.sendall(post("/v1/agents", "X-Forwarded-For: 203.0.113.9", *JSON))
            answer = next_answer(connection)
            seen.add(answer.status)
            assert not answer.closes
            if answer.status == 429:
                break
        assert seen == {413, 429}
        assert is_true(connection, answer)


def test_SA_11_what_follows_a_large_body_in_one_packet_is_answered(server: LiveServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=HANGS_SECONDS) as connection:
        connection.sendall((post("/v1/verify", *JSON) + LIVE) * 3)
        statuses, behind = [], b""
        for _ in range(6):
            answer = next_answer(connection, behind)
            statuses.append(answer.status)
            assert not answer.closes
            behind = answer.behind
        assert statuses == [401, 200] * 3


@contextmanager
def connected(*servers: LiveServer) -> Iterator[list[socket.socket]]:
    """A connection to each: slow steps then run on all at once."""
    with ExitStack() as opened:
        yield [
            opened.enter_context(
                socket.create_connection(("127.0.0.1", each.port), timeout=HANGS_SECONDS)
            )
            for each in servers
        ]


@pytest.mark.long
def test_SA_11_a_slow_sender_gets_408_and_connection_close(
    web: LiveServer, verifier: LiveServer
) -> None:
    with connected(web, verifier) as connections:
        for connection in connections:
            connection.sendall(b"POST /v1/verify HTTP/1.1\r\nX-A: ")
        for connection in connections:
            answer = next_answer(connection)
            assert (answer.status, answer.closes) == (408, True)
            assert is_true(connection, answer)


@pytest.mark.long
def test_SA_11_an_idle_connection_is_kept_for_longer_than_a_proxy_keeps_it(
    web: LiveServer, verifier: LiveServer
) -> None:
    assert min(web_gunicorn.keepalive, verifier_gunicorn.keepalive) > NGINX_IDLE_SECONDS
    with connected(web, verifier) as connections:
        for _ in range(3):
            for connection in connections:
                connection.sendall(LIVE)
                assert next_answer(connection) == Answer(200, closes=False)
            # Longer than gunicorn's own timeout, and its loop's next turn.
            time.sleep(3.5)
        for connection in connections:
            connection.sendall(LIVE)
            assert next_answer(connection).status == 200


def test_SA_11_beyond_a_quarter_idle_the_next_answer_says_close(web: LiveServer) -> None:
    most = web_gunicorn.worker_connections // 4
    with ExitStack() as opened:
        answers = []
        for _ in range(most + 40):
            connection = socket.create_connection(("127.0.0.1", web.port), timeout=HANGS_SECONDS)
            opened.enter_context(connection).sendall(LIVE)
            answers.append(next_answer(connection))
        assert {each.status for each in answers} == {200}
        # The loop may count an answer late, after up to one more answer per thread.
        assert most <= sum(not each.closes for each in answers) <= most + THREADS
        assert is_true(connection, answers[-1])


@pytest.mark.parametrize("kind", ["web", "verifier"])
def test_RF_18_idle_connections_do_not_keep_a_server_that_stops(kind: str, tmp_path: Path) -> None:
    """Nor is a request lost that arrives on one just then: it is answered, and told to close."""
    made = LiveRegistry(tmp_path, workers=1) if kind == "web" else Verifier(tmp_path)
    if isinstance(made, LiveRegistry):
        made.prepare()
    made.start()
    try:
        assert made.process
        with ExitStack() as opened:
            kept = []
            for _ in range(20):
                connection = socket.create_connection(
                    ("127.0.0.1", made.port), timeout=HANGS_SECONDS
                )
                opened.enter_context(connection).sendall(LIVE)
                assert not next_answer(connection).closes
                kept.append(connection)
            # It is frozen until both are there: a stopping process keeps idle connections for only
            # 2 s, and this one may get no CPU for longer.
            [worker] = children(made.process.pid)
            os.kill(worker, signal.SIGSTOP)
            made.process.send_signal(signal.SIGTERM)
            kept[0].sendall(LIVE)
            os.kill(worker, signal.SIGCONT)
            assert next_answer(kept[0]).status == 200
            # Sooner than the 30 s for requests in progress, and far sooner than the idle timeout.
            assert made.process.wait(25) == 0
            assert [rest(each) for each in kept] == [b""] * 20
    finally:
        made.stop()
