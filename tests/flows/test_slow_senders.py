"""Slow, split and missing requests, and slowly read answers, delay no other caller."""

import os
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from unittest.mock import patch

import httpx
import pytest

from agentauth import middleware
from agentauth.server import request_framing, thread_worker
from tests.certificates import certificate_for
from tests.conftest import CAMPAIGN
from tests.flows.test_web_server import head, memory, status_of
from tests.live import LiveRegistry
from tests.time_limits import within

# gunicorn's configuration changes the environment, which must not leak into this process.
with patch.dict(os.environ):
    from agentauth.server import web_gunicorn

# They wait for deadlines of ten and twenty seconds.
pytestmark = [pytest.mark.flow, pytest.mark.long]
THREADS = 8
# A request delayed by another sender waits for its cut-off; half of that already proves it.
HELD_UP_SECONDS = request_framing.LINGER_SECONDS if CAMPAIGN else request_framing.HEAD_SECONDS / 2
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    """A server with one process and few threads."""
    made = LiveRegistry(
        tmp_path_factory.mktemp("slow"),
        workers=1,
        env={"LOG_FORMAT": "json", "WEB_THREADS": str(THREADS)},
    )
    made.prepare()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def connect(registry: LiveRegistry) -> Iterator[Callable[[bytes], socket.socket]]:
    """Open a connection and send something; all are closed at the end."""
    with ExitStack() as opened:

        def connected(sent: bytes = b"") -> socket.socket:
            made = opened.enter_context(
                socket.create_connection(("127.0.0.1", registry.port), timeout=10)
            )
            made.sendall(sent)
            return made

        yield connected


def rest(connection: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    received = b""
    with suppress(ConnectionError):
        while part := connection.recv(65_536):
            received += part
    return received


def until(connection: socket.socket, end: bytes, times: int = 1) -> bytes:
    received = b""
    while received.count(end) < times:
        received += connection.recv(65_536) or pytest.fail(f"it hung up: {received!r}")
    return received


def longest_wait(registry: LiveRegistry) -> float:
    """Seconds of the slowest of some honest requests; a delayed one waits for the cut-off."""
    longest = 0.0
    for _ in range(5):
        for method, path, expected in (("GET", "/health/live", 200), ("POST", "/v1/verify", 401)):
            begun = time.monotonic()
            answer = httpx.request(
                method, registry.url + path, json={} if method == "POST" else None, timeout=10
            )
            longest = max(longest, time.monotonic() - begun)
            assert answer.status_code == expected
    return longest


def has_ended(connection: socket.socket) -> bool:
    """Whether the server closed the connection, with no answer left to read."""
    connection.setblocking(False)
    try:
        while connection.recv(65_536):
            pass
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


@pytest.mark.long
def test_DJ_7_slow_senders_delay_no_other_client_and_are_cut_off(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    begun = time.monotonic()
    half = [
        connect(head(registry, "POST /v1/revoke", "Content-Length: 1000") + b"{")
        for _ in range(THREADS * 4)
    ]
    dripping = [connect(b"POST /v1/verify HTTP/1.1\r\nX-A: ") for _ in range(THREADS * 4)]
    silent = [connect(b"") for _ in range(THREADS * 4)]
    ends: dict[socket.socket, float] = {}
    while len(
        ends
    ) < THREADS * 12 and time.monotonic() - begun < request_framing.REQUEST_SECONDS + within(4):
        if time.monotonic() - begun < 5:
            assert longest_wait(registry) < HELD_UP_SECONDS
        for connection in {*dripping, *half, *silent} - set(ends):
            try:
                if connection not in silent:
                    connection.send(b"x")
            except OSError:
                ends[connection] = time.monotonic() - begun
                continue
            if has_ended(connection):
                ends[connection] = time.monotonic() - begun
        time.sleep(0.2)
    for those, seconds in (
        (dripping + silent, request_framing.HEAD_SECONDS),
        (half, request_framing.REQUEST_SECONDS),
    ):
        assert all(seconds - 1 < ends[each] < seconds + within(4) for each in those)


def test_DJ_7_client_that_is_cut_off_gets_408(connect: Callable[[bytes], socket.socket]) -> None:
    connection = connect(b"POST /v1/verify HTTP/1.1\r\nX-A: ")
    connection.settimeout(15)
    assert status_of(rest(connection)) == 408


def test_DJ_7_client_that_does_not_hang_up_delays_no_other(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    for _ in range(THREADS * 2):
        connect(head(registry, "GET /health/live"))
    assert longest_wait(registry) < HELD_UP_SECONDS


def slow_reader(registry: LiveRegistry, asked: bytes) -> socket.socket:
    """A connection that holds little at once: small packets and a tiny receive buffer."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    made.settimeout(10)
    made.connect(("127.0.0.1", registry.port))
    made.sendall(asked)
    return made


SCHEMA = b"GET /v1/schema/ HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.mark.long
def test_DJ_7_slow_readers_delay_no_other_client_and_are_cut_off(registry: LiveRegistry) -> None:
    """Each byte read is a sign of life; the time until the whole answer is gone counts."""
    whole = len(httpx.get(f"{registry.url}/v1/schema/").content)
    assert whole > 100_000
    with ExitStack() as opened:
        slow = [opened.enter_context(slow_reader(registry, SCHEMA)) for _ in range(THREADS * 3)]
        begun, taken = time.monotonic(), dict.fromkeys(slow, 0)
        while time.monotonic() - begun < 6:
            assert longest_wait(registry) < HELD_UP_SECONDS
            for connection in slow:
                taken[connection] += len(connection.recv(1))
        time.sleep(request_framing.ANSWER_SECONDS - 4)
        for connection in slow:
            assert taken[connection] + len(rest(connection)) < whole


def test_DJ_7_an_answer_taken_in_pieces_arrives_whole_and_so_does_the_next(
    registry: LiveRegistry,
) -> None:
    """A generated answer, and a file."""
    style = "/static/agentauth.css"
    kinds = [httpx.get(registry.url + path).content for path in ("/v1/schema/", style)]
    with slow_reader(registry, SCHEMA + SCHEMA + head(registry, f"GET {style}")) as connection:
        received = rest(connection)
    assert [received.count(each) for each in kinds] == [2, 1]
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert received.endswith(b"\r\n\r\n" + kinds[1])


def test_DJ_7_too_many_senders_cost_the_first_of_them(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    most = web_gunicorn.worker_connections // 2
    opened = [connect(b"GET /health/live HTTP/1.1\r\n") for _ in range(most + 50)]
    assert longest_wait(registry) < HELD_UP_SECONDS
    cut = [has_ended(each) for each in opened]
    assert all(cut[:50])
    assert not any(cut[60:])


def test_DJ_7_unfinished_bodies_have_a_bound_together(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    before = memory(registry)
    size = request_framing.MAX_BODY_BYTES
    sent = head(registry, "POST /v1/verify", f"Content-Length: {size}") + b"x" * (size - 1)
    opened = []
    for _ in range(150):
        opened.append(connect(sent))
        assert memory(registry) - before < 2 * request_framing.MAX_HELD_BYTES
    assert longest_wait(registry) < HELD_UP_SECONDS
    assert sum(not has_ended(each) for each in opened) <= request_framing.MAX_HELD_BYTES // size


def test_DJ_7_a_head_that_never_ends_is_refused(connect: Callable[[bytes], socket.socket]) -> None:
    longest = web_gunicorn.limit_request_line + web_gunicorn.limit_request_fields * (
        web_gunicorn.limit_request_field_size + 2
    )
    assert status_of(rest(connect(b"GET / HTTP/1.1\r\nX: " + b"x" * longest))) == 431


def test_DJ_7_a_long_body_in_pieces_arrives_whole(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    made = registry.manage("create_service_provider", "Pieces", "--audience", "http://127.0.0.1:9")
    body = b'{"requests":[{}]' + b" " * (request_framing.MAX_BODY_BYTES - 17) + b"}"
    assert len(body) == request_framing.MAX_BODY_BYTES == middleware.MAX_BODY_BYTES
    kind = {"Content-Type": "application/json"}
    request = httpx.Request("POST", f"{registry.url}/v1/verify/batch", headers=kind, content=body)
    request = next(httpx.BasicAuth(made["client_id"], made["client_secret"]).auth_flow(request))
    lines = [f"{name}: {value}" for name, value in request.headers.items() if name != "host"]
    connection = connect(head(registry, "POST /v1/verify/batch", *lines))
    for start in range(0, len(body), 50_000):
        connection.sendall(body[start : start + 50_000])
        time.sleep(0.05)
    answer = rest(connection)
    assert status_of(answer) == 200
    assert b'"results"' in answer


def test_DJ_7_requests_in_one_packet_are_answered_in_turn(
    connect: Callable[[bytes], socket.socket],
) -> None:
    post = b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    bye = b"GET /nothing HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answers = rest(connect(LIVE + post + LIVE + bye))
    assert [int(part[:3]) for part in answers.split(b"HTTP/1.1 ")[1:]] == [200, 401, 200, 404]


def test_DJ_7_kept_connection_takes_the_next_request_in_any_pieces(
    connect: Callable[[bytes], socket.socket],
) -> None:
    connection = connect(LIVE + LIVE[:20])
    until(connection, b'"status"')
    for each in LIVE[20:] + LIVE[:-2]:
        connection.sendall(bytes([each]))
    until(connection, b'"status"')
    connection.sendall(LIVE[-2:])
    until(connection, b'"status"')


def test_DJ_7_half_a_connection_is_enough(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    whole = connect(LIVE)
    whole.shutdown(socket.SHUT_WR)
    assert status_of(rest(whole)) == 200
    begun = time.monotonic()
    short = connect(head(registry, "POST /v1/verify", "Content-Length: 100") + b"{" + LIVE[:20])
    short.shutdown(socket.SHUT_WR)
    assert status_of(rest(short)) in {400, 401}
    none = connect(b"GET /hea")
    none.shutdown(socket.SHUT_WR)
    assert rest(none) == b""
    assert time.monotonic() - begun < within(5)


@pytest.mark.parametrize(
    "line", [b"Content-Length: 2000000", b"Transfer-Encoding: chunked", b"Content-Length: 0x40"]
)
def test_DJ_7_bytes_after_a_refused_body_are_not_a_request(
    connect: Callable[[bytes], socket.socket], line: bytes
) -> None:
    """An unread body has an unknown end, and its text must not become another client's request."""
    connection = connect(
        b"POST /v1/verify HTTP/1.1\r\nHost: localhost\r\n" + line + b"\r\n\r\n" + LIVE
    )
    answer = until(connection, b"\r\n\r\n")
    connection.sendall(LIVE)
    answer += rest(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert status_of(answer) in {400, 413}


def test_DJ_7_parser_reading_past_the_request_ends_the_connection() -> None:
    received = thread_worker.RequestBuffer()
    received.data += b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\n{}"
    assert received.is_whole()
    received.serve()
    assert received.read().endswith(b"\r\n\r\n")
    assert (received.read(2), received.last) == (b"{}", False)
    assert (received.read(1), received.last) == (b"", True)


def test_DJ_7_expect_100_continue_is_answered_once(
    registry: LiveRegistry, connect: Callable[[bytes], socket.socket]
) -> None:
    expects = ["Content-Length: 2", "Expect: 100-continue"]
    asking = connect(head(registry, "POST /v1/verify", *expects))
    assert until(asking, b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    asking.sendall(b"{}")
    assert status_of(rest(asking)) == 401
    assert status_of(rest(connect(head(registry, "POST /v1/verify", *expects) + b"{}"))) == 401
    expects[0] = "Content-Length: 2000000"
    assert status_of(rest(connect(head(registry, "POST /v1/verify", *expects)))) == 413


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\n\n", b"GET / HTTP/1.1\r\nX: y\nZ: a\r\n", b"\r\n\r\nGET / HTTP/1.1\r\n"],
)
def test_DJ_7_a_line_that_ends_otherwise_is_refused_at_once(
    connect: Callable[[bytes], socket.socket], sent: bytes
) -> None:
    begun = time.monotonic()
    assert status_of(rest(connect(sent))) == 400
    assert time.monotonic() - begun < within(5)


def test_DJ_7_a_server_that_stops_answers_what_it_began_to_receive(registry: LiveRegistry) -> None:
    """Last: it ends the server."""
    address = ("127.0.0.1", registry.port)
    taking = slow_reader(registry, SCHEMA)
    with (
        socket.create_connection(address, timeout=10) as begun,
        socket.create_connection(address, timeout=10) as _silent,
    ):
        begun.sendall(LIVE[:20])
        time.sleep(0.2)
        assert registry.process
        stopped = time.monotonic()
        os.kill(registry.process.pid, signal.SIGTERM)
        time.sleep(3)
        begun.sendall(LIVE[20:])
        answer = rest(begun)
        assert status_of(answer) == 200
        assert b"connection: close" in answer.lower()
        with taking:
            assert rest(taking).endswith(b"}")
        assert registry.process.wait(20) == 0
        assert time.monotonic() - stopped < within(9)


def test_DJ_7_with_tls_of_its_own_the_server_waits_no_more(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("tls")
    certificate, key = certificate_for("localhost")
    kept = directory / "both.pem"
    kept.write_bytes(key + certificate)
    made = LiveRegistry(
        directory, workers=1, arguments=["--certfile", str(kept)], env={"WEB_THREADS": "2"}
    )
    made.prepare()
    made.launch()
    trust = ssl.create_default_context(cafile=kept)
    url = f"https://localhost:{made.port}"
    try:
        with ExitStack() as opened, httpx.Client(base_url=url, verify=trust) as client:
            for _ in range(100):
                try:
                    assert client.get("/health/live").status_code == 200
                    break
                except httpx.TransportError:
                    time.sleep(0.2)
            for sent in (b"", b"\x16\x03\x01") * 4:
                raw = opened.enter_context(
                    socket.create_connection(("127.0.0.1", made.port), timeout=10)
                )
                raw.sendall(sent)
                half = opened.enter_context(
                    socket.create_connection(("127.0.0.1", made.port), timeout=10)
                )
                half = opened.enter_context(trust.wrap_socket(half, server_hostname="localhost"))
                half.sendall(head(made, "POST /v1/verify", "Content-Length: 100"))
            taking = opened.enter_context(
                trust.wrap_socket(slow_reader(made, b""), server_hostname="localhost")
            )
            taking.sendall(SCHEMA.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
            begun = time.monotonic()
            assert client.post("/v1/verify", content=b"x" * 900_000).status_code == 401
            assert httpx.get(f"{url}/health/live", verify=trust).status_code == 200
            assert time.monotonic() - begun < within(5)
            assert rest(taking).endswith(httpx.get(f"{url}/v1/schema/", verify=trust).content)
    finally:
        made.stop()
