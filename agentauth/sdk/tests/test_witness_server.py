"""The witness's HTTP server: bounds on bytes, time and connections, and that no connection carries
one request inside another.
"""

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agentauth.protocol.signed_notes import MAX_NOTE_BYTES
from agentauth.sdk.tests.witness_cast import Log, Served, new_witness, serving
from agentauth.sdk.witness import server as server_module
from agentauth.sdk.witness.server import WitnessServer
from tests.time_limits import within

HEAD = b"POST /add-checkpoint HTTP/1.1\r\nHost: w\r\n"


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def witness(log: Log, tmp_path: Path) -> Iterator[Served]:
    with serving(new_witness(tmp_path, log), seconds=1.0) as served:
        yield served


def connect(witness: Served) -> socket.socket:
    return socket.create_connection(witness.server.server_address[:2], timeout=20)  # type: ignore[arg-type]


def raw(witness: Served, sent: bytes) -> bytes:
    """Everything received until the server closes the connection."""
    with connect(witness) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 411),
        (b"Transfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n", 411),
        (b"Content-Length: 2\r\nContent-Length: 2\r\n", 411),
        (b"Content-Length: -2\r\n", 400),
        (b"Content-Length: +2\r\n", 400),
        (b"Content-Length: 2, 2\r\n", 400),
        (b"Content-Length: \xb2\r\n", 400),
        (b"Content-Length:\r\n", 400),
        (b"Content-Length: %d\r\n" % (MAX_NOTE_BYTES + 1), 413),
        (b"Content-Length: " + b"9" * 5000 + b"\r\n", 413),
    ],
)
def test_a_body_without_one_length_is_refused_and_nothing_after_it_is_read(
    witness: Served, log: Log, headers: bytes, status: int
) -> None:
    inner = b"GET /x HTTP/1.1\r\nHost: w\r\n\r\n"
    answer = raw(witness, HEAD + headers + b"\r\n" + inner)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert answer.count(b"HTTP/1.1 ") == 1


def test_unexpected_body_is_not_read_as_the_next_request(witness: Served) -> None:
    inner = b"GET /x HTTP/1.1\r\nHost: w\r\n\r\n"
    for method in (b"GET", b"PUT", b"HEAD"):
        answer = raw(
            witness,
            method
            + b" /x/checkpoint HTTP/1.1\r\nHost: w\r\nContent-Length: %d\r\n\r\n" % len(inner)
            + inner,
        )
        assert answer.count(b"HTTP/1.1 ") == 1


def test_a_largest_body_is_read_to_its_end(witness: Served, log: Log) -> None:
    assert witness.add("x" * MAX_NOTE_BYTES).status_code == 400
    assert witness.add("x" * (MAX_NOTE_BYTES + 1)).status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/add-checkpoint", 405),
        ("PUT", "/add-checkpoint", 501),
        ("POST", "/", 404),
        ("POST", "/add-checkpoint/", 404),
        ("POST", "/add-checkpoint?x", 404),
        ("POST", "/prefix/add-checkpoint", 404),
        ("POST", "/sign-subtree", 404),
        ("GET", "/", 404),
        ("GET", "/checkpoint", 404),
        ("GET", "/../state/checkpoint", 404),
    ],
)
def test_there_are_two_places_and_no_more(
    witness: Served, method: str, path: str, status: int
) -> None:
    answer = witness.client.request(method, path, content=b"x" if method == "POST" else None)
    assert answer.status_code == status
    assert "<" not in answer.text
    assert "Python" not in answer.headers.get("Server", "")


def test_one_connection_serves_several_requests(witness: Served, log: Log) -> None:
    requests = [log.request(0, 1), log.request(1, 2), log.request(0, 9)]
    sent = b"".join(
        HEAD + b"Content-Length: %d\r\n\r\n" % len(body.encode()) + body.encode()
        for body in requests
    )
    answer = raw(witness, sent)
    assert [line.split()[1] for line in answer.splitlines() if line.startswith(b"HTTP/1.1 ")] == [
        b"200",
        b"200",
        b"409",
    ]


def test_truncated_body_is_not_handled_as_a_request(witness: Served, log: Log) -> None:
    body = log.request(0, 5).encode()
    assert raw(witness, HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) + 1) + body) == b""
    assert witness.add(log.request(0, 3)).status_code == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST",
        HEAD,
        HEAD + b"Content-Length: 9\r\n\r\n",
        HEAD + b"Content-Length: 9\r\n\r\nold 0",
    ],
    ids=["nothing", "half a line", "half a head", "no body", "half a body"],
)
def test_who_stays_silent_is_hung_up_on(witness: Served, sent: bytes) -> None:
    with connect(witness) as connection:
        connection.sendall(sent)
        assert connection.recv(1) == b""


def test_who_sends_a_byte_at_a_time_has_no_longer(witness: Served) -> None:
    begun = time.monotonic()
    with connect(witness) as connection:
        connection.settimeout(0.05)
        closed = False
        for number in range(2000):
            try:
                connection.sendall(HEAD[number : number + 1] or b"x")
                closed = connection.recv(1) == b""
            except TimeoutError:
                continue
            except ConnectionError:
                closed = True
            if closed:
                break
    assert closed
    # Each byte came in time, but all of them together did not.
    assert time.monotonic() - begun < within(15)


def test_connections_beyond_the_bound_are_closed_unheard(
    log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTIONS", 2)
    with serving(new_witness(tmp_path, log), seconds=20.0) as witness:
        with connect(witness) as one, connect(witness) as two:
            for connection in (one, two):
                connection.sendall(b"GET /x/checkpoint HTTP/1.1\r\nHost: w\r\n\r\n")
                # Answered, and the connection is kept for the next request.
                assert connection.recv(1) == b"H"
            with connect(witness) as third:
                assert third.recv(1) == b""
        # A client that leaves makes room once the server has noticed.
        answered = [attempt(lambda: witness.add(log.request(0, 5)).status_code) for _ in range(200)]
        assert 200 in answered


def attempt(ask: Callable[[], int]) -> int:
    try:
        return ask()
    except Exception:  # noqa: BLE001 - whatever the client calls a connection that was closed
        time.sleep(0.01)
        return 0


def test_it_listens_at_an_address_of_version_6_too(log: Log, tmp_path: Path) -> None:
    server = WitnessServer(("::1", 0), new_witness(tmp_path, log))
    assert server.url.startswith("http://[::1]:")
    server.server_close()
