"""The verifier's server with slow, split, pipelined and missing requests, and its stop.

The tests fill, measure and stop servers of their own.
"""

import contextlib
import json
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest.mock import patch

import httpx
import pytest

from agentauth.server import request_framing
from tests.conftest import CAMPAIGN
from tests.flows.test_slow_senders import LIVE, has_ended, rest, until
from tests.flows.test_verifier_http import END, POST, Verifier, line, read_echo, statuses
from tests.flows.test_verifier_http import verifier as verifier  # noqa: PLC0414 — a fixture
from tests.flows.test_web_server import exchange, memory
from tests.live import START_SECONDS, LiveServer
from tests.time_limits import HANGS_SECONDS, within
from tests.waiting import until as wait_until

# gunicorn's configuration changes the environment, which must not leak into this process.
with patch.dict(os.environ):
    from agentauth.server import connection_balancing, verifier_gunicorn

pytestmark = pytest.mark.flow
Connect = Callable[..., socket.socket]
SLOW = b"GET /v1/verify/slowly HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def connect(verifier: LiveServer) -> Iterator[Connect]:
    """Open a connection and send something; all are closed at the end."""
    with ExitStack() as opened:

        def connected(sent: bytes = b"") -> socket.socket:
            address = ("127.0.0.1", verifier.port)
            made = opened.enter_context(socket.create_connection(address, timeout=HANGS_SECONDS))
            made.sendall(sent)
            return made

        yield connected


def longest_wait(verifier: LiveServer, times: int = 20) -> float:
    """Seconds of the slowest of some honest requests, each on its own connection."""
    longest = 0.0
    for _ in range(times):
        begun = time.monotonic()
        answer = httpx.post(
            verifier.url + "/v1/verify", json={"a": "x" * 3000}, timeout=HANGS_SECONDS
        )
        longest = max(longest, time.monotonic() - begun)
        assert answer.status_code == 401
    return longest


@pytest.mark.long
def test_RF_20_DJ_7_a_thousand_slow_senders_delay_none_and_are_cut_off(
    verifier: LiveServer, connect: Connect
) -> None:
    """One byte a second: heads, bodies, and silent connections."""
    begun = time.monotonic()
    opened: list[tuple[socket.socket, float, float]] = []
    for number in range(1000):
        kind = number % 3
        sent = (POST + b"X-A: ", POST + b"Content-Length: 1000\r\n\r\n{", b"")[kind]
        opened.append((connect(sent), time.monotonic(), (10, 20, 10)[kind]))
    silent = {connection for connection, _, _ in opened[2::3]}
    ends: dict[socket.socket, float] = {}
    worst = 0.0
    while len(ends) < len(opened) and time.monotonic() - begun < 20 + within(20):
        worst = max(worst, longest_wait(verifier, 5))
        for connection, since, _ in opened:
            if connection in ends:
                continue
            if has_ended(connection):
                ends[connection] = time.monotonic() - since
                continue
            if connection not in silent:
                with contextlib.suppress(OSError):
                    connection.send(b"x")
        time.sleep(0.8)
    assert len(ends) == len(opened)
    assert worst < within(5)
    # Capacity is limited, so the first connections were closed. Those accepted in one turn are in
    # no order.
    first = opened[
        : 1000 - verifier_gunicorn.worker_connections - connection_balancing.MOST_AT_A_TURN
    ]
    rest_of_them = opened[-400:]
    assert all(ends[connection] < within(10) for connection, _, _ in first)
    for connection, _, patience in rest_of_them:
        assert patience - 1 < ends[connection] < patience + within(6)


def test_DJ_7_unfinished_bodies_have_a_bound_together(
    verifier: LiveServer, connect: Connect
) -> None:
    before, size = memory(verifier), request_framing.MAX_BODY_BYTES
    sent = POST + b"Content-Length: %d\r\n\r\n" % size + b"x" * (size - 1)
    opened = []
    for _ in range(150):
        opened.append(connect(sent))
        assert memory(verifier) - before < 2 * request_framing.MAX_HELD_BYTES
    assert longest_wait(verifier) < within(5)
    assert sum(not has_ended(each) for each in opened) <= request_framing.MAX_HELD_BYTES // size


@pytest.mark.parametrize(
    ("lines", "more", "status"),
    [
        (b"Content-Length: 100000000", b"x" * 1_000_000, 413),
        (b"Transfer-Encoding: chunked", b"10000\r\n" + b"x" * 65_536 + b"\r\n", 400),
        (b"X-A: ", b"x" * 65_536, 431),
        (b"X-A: ", b"x\r\nX-A: y" * 4096, 431),
    ],
)
def test_DJ_7_what_never_ends_is_refused_and_not_kept(
    verifier: LiveServer, lines: bytes, more: bytes, status: int
) -> None:
    before = memory(verifier)
    end = b"" if lines.endswith(b" ") else b"\r\n\r\n"
    answer = exchange(verifier, POST + lines + end, more=more)
    assert statuses(answer) == [status]
    assert memory(verifier) - before < 20_000_000


def test_DJ_7_a_long_body_in_pieces_arrives_whole(connect: Connect) -> None:
    size = request_framing.MAX_BODY_BYTES
    connection = connect(POST + b"Content-Length: %d\r\n" % size + END)
    for start in range(0, size, 65_536):
        connection.sendall(b"x" * min(65_536, size - start))
        time.sleep(0.01)
    assert read_echo(rest(connection))["body"] == size


def test_DJ_7_requests_in_one_packet_are_answered_in_turn(connect: Connect) -> None:
    post = POST + b"Content-Length: 2\r\n\r\n{}"
    answers = rest(
        connect(LIVE + SLOW + post + LIVE + line(first=b"GET /nothing HTTP/1.1\r\nHost: a\r\n"))
    )
    assert statuses(answers) == [200, 200, 401, 200, 404]


def test_DJ_7_a_stream_of_requests_behind_a_slow_one_is_not_kept(
    verifier: LiveServer, connect: Connect
) -> None:
    before = memory(verifier)
    connection = connect(SLOW)
    connection.settimeout(1)
    behind = LIVE * 1_000_000
    with pytest.raises(TimeoutError):
        connection.sendall(behind)
    assert memory(verifier) - before < 20_000_000


def test_DJ_7_kept_connection_takes_the_next_request_in_any_pieces(connect: Connect) -> None:
    connection = connect(LIVE + LIVE[:20])
    until(connection, b'"ok"}')
    for each in LIVE[20:] + LIVE[:-2]:
        connection.sendall(bytes([each]))
    until(connection, b'"ok"}')
    connection.sendall(LIVE[-2:])
    until(connection, b'"ok"}')


@pytest.mark.long
def test_DJ_7_half_a_connection_is_enough(connect: Connect) -> None:
    begun = time.monotonic()
    for sent, expected in [
        (LIVE, [200]),
        (LIVE + LIVE, [200, 200]),
        (SLOW, [200]),
        (SLOW + LIVE + LIVE, [200, 200, 200]),
        (SLOW + LIVE[:20], [200]),
        (SLOW + POST + b"Content-Length: 100\r\n\r\n{", [200, 400]),
        (POST + b"Content-Length: 100\r\n\r\n{" + LIVE[:20], [400]),
        (b"GET /hea", []),
        (b"", []),
    ]:
        connection = connect(sent)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(rest(connection)) == expected, sent
    assert time.monotonic() - begun < within(12)


@pytest.mark.parametrize(
    "framing", [b"Content-Length: 2000000", b"Transfer-Encoding: chunked", b"Content-Length: 0x40"]
)
def test_DJ_7_bytes_after_a_refused_body_are_not_a_request(
    connect: Connect, framing: bytes
) -> None:
    connection = connect(POST + framing + b"\r\n\r\n" + LIVE)
    answer = until(connection, b"\r\n\r\n")
    with contextlib.suppress(OSError):
        connection.sendall(LIVE)
    answer += rest(connection)
    assert statuses(answer) in ([400], [413])
    assert b"connection: close" in answer.lower()


def test_DJ_7_bytes_beyond_the_length_are_the_next_request(connect: Connect) -> None:
    sent = POST + b"Content-Length: 2\r\n\r\n{}{}" + line()
    assert statuses(rest(connect(sent))) == [401, 400]


def test_DJ_7_expect_100_continue_is_answered_once(connect: Connect) -> None:
    expects = POST + b"Content-Length: 2\r\nExpect: 100-continue\r\n" + END
    asking = connect(expects)
    assert until(asking, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    asking.sendall(b"{}")
    assert statuses(rest(asking)) == [401]
    assert statuses(rest(connect(expects + b"{}"))) == [401]
    too_long = expects.replace(b": 2", b": 2000000")
    assert statuses(rest(connect(too_long))) == [413]
    assert statuses(rest(connect(expects.replace(b"/1.1", b"/1.0") + b"{}"))) == [401]


@pytest.mark.long
def test_DJ_7_client_that_does_not_read_the_answer_is_dropped(
    verifier: LiveServer, connect: Connect
) -> None:
    before = memory(verifier)
    asking = b"GET /v1/verify/long HTTP/1.1\r\nHost: localhost\r\n\r\n"
    opened = [connect(asking) for _ in range(5)]
    assert longest_wait(verifier) < within(5)
    time.sleep(request_framing.REQUEST_SECONDS + 3)
    assert memory(verifier) - before < 20_000_000
    for each in opened:
        assert len(rest(each)) < 8_000_000


def test_DJ_7_connections_that_ended_leave_nothing_behind(verifier: LiveServer) -> None:
    before, sent = memory(verifier), POST + b"Content-Length: 1000000\r\n\r\n" + b"x" * 999_999
    for _ in range(100):
        address = ("127.0.0.1", verifier.port)
        with socket.create_connection(address, timeout=HANGS_SECONDS) as connection:
            connection.sendall(sent)
    # The last of them may still be in the kernel; a deadline that ends them comes later.
    wait_until(
        lambda: memory(verifier) - before < 20_000_000,
        "something is left behind",
        request_framing.REQUEST_SECONDS / 2,
    )


def test_DJ_7_a_slow_reader_has_all_of_the_answer(connect: Connect) -> None:
    connection = connect(b"GET /v1/verify/long HTTP/1.1\r\nHost: localhost\r\n" + END)
    size = 0
    while part := connection.recv(1_000_000):
        size += len(part)
        time.sleep(0.2)
    assert size > 8_000_000


# --- Stopping ------------------------------------------------------------------------------------


class Caller(threading.Thread):
    """Asks repeatedly on a kept connection, as a service provider's pool does."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.port, self.answered, self.lost, self.untaken = port, 0, 0, 0
        self.ends = threading.Event()

    def run(self) -> None:
        while not self.ends.is_set():
            try:
                address = ("127.0.0.1", self.port)
                connection = socket.create_connection(address, timeout=HANGS_SECONDS)
            except OSError:
                # The server does not listen: nothing was asked.
                return
            with connection:
                self.ask(connection)

    def ask(self, connection: socket.socket) -> None:
        answer = b""
        while not self.ends.is_set() and b"connection: close" not in answer.lower():
            try:
                connection.sendall(POST + b"Content-Length: 2\r\n\r\n{}")
                answer = until(connection, b'"ok"}')
            except (AssertionError, OSError) as error:
                if not answer and isinstance(error, ConnectionResetError):
                    self.untaken += 1
                else:
                    self.lost += 1
                return
            self.answered += 1


@pytest.mark.parametrize("how", [signal.SIGHUP, signal.SIGTERM], ids=["restart", "stop"])
def test_RF_18_no_request_is_lost_while_processes_come_and_go(
    tmp_path: Path, how: signal.Signals
) -> None:
    made = Verifier(tmp_path, workers=2)
    made.start()
    assert made.process
    callers = [Caller(made.port) for _ in range(8)]
    with ExitStack() as opened:
        try:
            for each in callers:
                each.start()
            wait_until(lambda: sum(each.answered for each in callers) > 500, "few are answered")
            address = ("127.0.0.1", made.port)
            idle, half, slow = (
                opened.enter_context(socket.create_connection(address, timeout=HANGS_SECONDS))
                for _ in range(3)
            )
            # The answer to the first request shows that what follows it has arrived too.
            for connection, follows in ((idle, b""), (half, LIVE[:20]), (slow, SLOW)):
                connection.sendall(LIVE + follows)
            for connection in (idle, half):
                until(connection, b'"ok"}')
            slowly = until(slow, b'"ok"}')
            os.kill(made.process.pid, how)
            stopped = time.monotonic()
            assert statuses(slowly + rest(slow)) == [200, 200]
            time.sleep(1)
            half.sendall(LIVE[20:])
            answer = rest(half)
            assert statuses(answer) == [200]
            assert b"connection: close" in answer.lower()
            half.close()
            assert rest(idle) == b""
            assert time.monotonic() - stopped < within(8)
            if how == signal.SIGTERM:
                assert made.process.wait(HANGS_SECONDS) == 0
            else:
                assert longest_wait(made) < within(5)
        finally:
            for each in callers:
                each.ends.set()
            for each in callers:
                each.join()
            made.stop()
    assert [each.lost for each in callers] == [0] * 8
    # At shutdown the kernel may accept one connection between the last accept and the close, and
    # then resets it. On a busy machine the process may get no CPU in between while all call again.
    most = 1 if CAMPAIGN else len(callers)
    assert sum(each.untaken for each in callers) <= (most if how == signal.SIGTERM else 0)
    assert "Traceback" not in made.log.read_text()


def test_a_certificate_is_the_proxys(tmp_path: Path) -> None:
    made = Verifier(tmp_path)
    made.command += ["--certfile", str(tmp_path)]
    made.launch()
    assert made.process
    try:
        assert made.process.wait(START_SECONDS) == 1
    finally:
        made.stop()
    assert "configure the certificate at the proxy in front" in made.log.read_text()


def test_connections_that_come_at_once_are_shared_by_the_processes(tmp_path: Path) -> None:
    """Told by the process that answers. The test has a server with two processes."""
    verifier = Verifier(tmp_path, workers=2)
    verifier.start()

    def answering() -> Counter[int]:
        with ExitStack() as opened:
            address = ("127.0.0.1", verifier.port)
            made = [
                opened.enter_context(socket.create_connection(address, timeout=HANGS_SECONDS))
                for _ in range(16)
            ]
            for each in made:
                each.sendall(line())
            return Counter(
                json.loads(rest(each).partition(b"\r\n\r\n")[2])["process"] for each in made
            )

    try:
        # One process is still starting.
        wait_until(lambda: len(answering()) == 2, "one process answers all", START_SECONDS)
        rounds = [answering() for _ in range(7)]

        def each_has_its_share() -> bool:
            least = min(sum(rounds, Counter()).values()) >= len(rounds) * 16 / 4
            at_once = max(16 - max(had.values()) for had in rounds) >= 4
            return least and at_once

        # In a single round a stalled process may get none; over many rounds each gets its share, in
        # some at once. A busy machine may stall one for several rounds.
        while not each_has_its_share():
            assert len(rounds) < 100, rounds
            rounds.append(answering())
        assert all(sum(had.values()) == 16 for had in rounds)
    finally:
        verifier.stop()
