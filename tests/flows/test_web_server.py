"""Requests no client of ours sends, at a real server: oversized, endless, false, or misspelled.

The tests inspect memory, log and database of servers of their own, and stop them.
"""

import gzip
import os
import re
import signal
import socket
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from pathlib import Path

import httpx
import pytest

from agentauth.middleware import MOST_WAIT_SECONDS
from benchmarks.cpu_time import children
from tests.live import LiveRegistry, LiveServer
from tests.time_limits import HANGS_SECONDS
from tests.waiting import until

pytestmark = pytest.mark.flow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    directory = tmp_path_factory.mktemp("server")
    registry = LiveRegistry(directory, workers=1, env={"LOG_FORMAT": "json"})
    registry.prepare()
    registry.start()
    yield registry
    registry.stop()


def exchange(
    registry: LiveServer, sent: bytes, *, seconds: float = HANGS_SECONDS, more: bytes = b""
) -> bytes:
    """Send raw bytes, then `more` repeatedly until an answer comes; returns everything received."""
    with socket.create_connection(("127.0.0.1", registry.port), timeout=seconds) as connection:
        connection.sendall(sent)
        connection.settimeout(0.2 if more else seconds)
        received, deadline = b"", time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                if more:
                    # A server that refused and hung up reads no more, but its answer is here.
                    with suppress(ConnectionError):
                        connection.sendall(more)
                part = connection.recv(65_536)
            except TimeoutError:
                continue
            except OSError:
                break
            received += part
            # Refusals are JSON objects; head and body may arrive separately.
            if not part or (more and received.endswith(b"}")):
                break
        return received


def status_of(answer: bytes) -> int:
    found = re.match(rb"HTTP/1\.1 (\d+)", answer)
    return int(found[1]) if found else 0


def head(registry: LiveRegistry, first: str = "POST /v1/verify", *lines: str) -> bytes:
    return "\r\n".join(
        [
            f"{first} HTTP/1.1",
            f"Host: localhost:{registry.port}",
            "Connection: close",
            *lines,
            "",
            "",
        ]
    ).encode()


def memory(registry: LiveServer) -> int:
    """Bytes of memory that the server's processes hold."""
    assert registry.process
    total = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(stat.read_text().rpartition(")")[2].split()[2]) == registry.process.pid:
                total += int((stat.parent / "statm").read_text().split()[1]) * os.sysconf(
                    "SC_PAGE_SIZE"
                )
        except OSError:
            continue
    return total


@pytest.mark.parametrize("size", [9_000, 70_000])
@pytest.mark.parametrize("name", ["X-Anything", "DPoP", "Authorization", "Cookie"])
def test_DJ_6_header_over_its_limit_is_refused_before_parsing(
    server: LiveRegistry, name: str, size: int
) -> None:
    assert (
        status_of(exchange(server, head(server, "GET /health/live", f"{name}: {'x' * size}")))
        == 431
    )
    assert (
        status_of(exchange(server, head(server, "GET /health/live", f"{name}: {'x' * 8000}")))
        == 200
    )


def test_DJ_6_many_headers_and_long_addresses_are_refused(server: LiveRegistry) -> None:
    many = [f"X-{number}: y" for number in range(100)]
    assert status_of(exchange(server, head(server, "GET /health/live", *many))) == 431
    assert status_of(exchange(server, head(server, f"GET /health/live?{'x' * 5000}"))) == 414


@pytest.mark.parametrize("size", [2_500_000, 100_000_000])
def test_DJ_7_a_large_body_is_413_and_not_kept(server: LiveRegistry, size: int) -> None:
    """An anonymous page act: it is not refused before its body is."""
    before = memory(server)
    lines = [
        f"Content-Length: {size}",
        f"Origin: {server.url}",
        "Content-Type: application/json",
        "Sec-Fetch-Site: same-origin",
    ]
    answer = exchange(server, head(server, "POST /sign-in/finish", *lines), more=b"x" * 1_000_000)
    assert status_of(answer) in {403, 413}
    assert memory(server) - before < 20_000_000


def test_DJ_7_files_of_a_form_are_refused_before_any_is_read(server: LiveRegistry) -> None:
    """Django's CSRF check parses them before any view runs, and its form limits ignore files."""
    part = b'--x\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n'
    before = memory(server)
    lines = [
        f"Content-Length: {len(part) + 100_000_000}",
        f"Origin: {server.url}",
        "Content-Type: multipart/form-data; boundary=x",
        f"Cookie: agentauth_csrf={'a' * 32}",
    ]
    sent = head(server, "POST /sign-in/options", *lines) + part
    answer = exchange(server, sent, more=b"x" * 1_000_000)
    assert status_of(answer) == 413
    assert memory(server) - before < 20_000_000


def test_DJ_7_a_chunked_body_is_refused_and_never_read(server: LiveRegistry) -> None:
    before = memory(server)
    sent = head(
        server, "POST /v1/verify", "Transfer-Encoding: chunked", "Content-Type: application/json"
    )
    answer = exchange(server, sent + b"10000\r\n", more=b"x" * 65_536 + b"\r\n10000\r\n")
    assert status_of(answer) == 400
    assert b"Content-Length" in answer
    assert memory(server) - before < 20_000_000


def test_DJ_7_two_lengths_and_a_negative_one_are_refused(server: LiveRegistry) -> None:
    for lines in (
        ["Content-Length: 2", "Content-Length: 3"],
        ["Content-Length: -1"],
        ["Content-Length: 1e3"],
    ):
        assert status_of(exchange(server, head(server, "POST /v1/verify", *lines) + b"{}")) == 400
    both = ["Content-Length: 2", "Transfer-Encoding: chunked"]
    assert status_of(exchange(server, head(server, "POST /v1/verify", *both) + b"{}")) == 400


def test_DJ_7_a_compressed_body_is_read_as_what_it_is(server: LiveRegistry) -> None:
    """Nothing is unpacked, so ten megabytes in ten kilobytes are 10 kB of invalid JSON."""
    body = gzip.compress(b'{"a":"' + b"x" * 10_000_000 + b'"}')
    assert len(body) < 65_536
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json", "Origin": server.url}
    page = httpx.get(f"{server.url}/sign-in/", timeout=HANGS_SECONDS)
    token = re.search(r'name="csrf-token" content="([^"]+)"', page.text)
    assert token
    headers |= {"X-CSRFToken": token[1], "Sec-Fetch-Site": "same-origin"}
    before = memory(server)
    answer = httpx.post(
        f"{server.url}/sign-in/finish",
        content=body,
        headers=headers,
        cookies=page.cookies,
        timeout=HANGS_SECONDS,
    )
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_request")
    assert memory(server) - before < 10_000_000


@pytest.mark.parametrize(
    "path",
    [
        "/static/../manage.py",
        "/static/..%2fmanage.py",
        "/static//etc/passwd",
        "/static/.",
        "/../../etc/passwd",
        "/.git/HEAD",
    ],
)
def test_DJ_18_static_directory_serves_no_other_files(server: LiveRegistry, path: str) -> None:
    answer = exchange(server, head(server, f"GET {path}"))
    assert status_of(answer) == 404
    # A name without a version, which would help to look up known flaws.
    assert b"server: gunicorn\r\n" in answer.lower()


@pytest.mark.parametrize(
    "path", ["/v1/%61gents/me", "/v1/agents%2Fme", "/.well-known/%6Awks.json", "/%2e%2e/etc"]
)
def test_DJ_3_an_address_has_one_spelling(server: LiveRegistry, path: str) -> None:
    """As sent: Django alone would decode it, and a proof's URL is compared as text."""
    answer = exchange(server, head(server, f"GET {path}"))
    assert status_of(answer) == 404


@pytest.mark.parametrize(
    ("name", "said"), [("Sec-Fetch-Site", b"own pages"), ("Sec_Fetch_Site", b"out of date")]
)
def test_DJ_4_a_name_with_an_underscore_is_dropped(
    server: LiveRegistry, name: str, said: bytes
) -> None:
    """WSGI would map both spellings to one variable, but proxies strip or set only one."""
    lines = [
        f"Origin: {server.url}",
        "Content-Type: application/json",
        "Content-Length: 2",
        f"{name}: cross-site",
    ]
    answer = exchange(server, head(server, "POST /sign-in/options", *lines) + b"{}")
    # The first is refused for its origin, the second only for its missing token.
    assert status_of(answer) == 403
    assert said in answer


def test_DJ_3_client_headers_cannot_set_scheme_or_mount_point(server: LiveRegistry) -> None:
    lines = [
        "X-Forwarded-Proto: https",
        "X-Forwarded-Ssl: on",
        "Script-Name: /evil",
        "SCRIPT_NAME: /evil",
    ]
    answer = exchange(server, head(server, "GET /approvals/", *lines))
    assert status_of(answer) == 302
    assert b"location: /sign-in/?next=%2fapprovals%2f\r\n" in answer.lower()
    assert (
        status_of(exchange(server, head(server, "GET /", "X-Forwarded-Host: evil.example"))) == 200
    )


def test_RF_19_long_thread_wait_gives_503_and_the_next_call_is_served(
    tmp_path: Path,
) -> None:
    registry = LiveRegistry(tmp_path, workers=1, env={"WEB_THREADS": "1"})
    registry.prepare()
    registry.start()
    paths = "/v1/agents/me", "/.well-known/agentauth", "/health/live"

    def asked_while_one_waits() -> list[httpx.Response]:
        with (
            closing(sqlite3.connect(tmp_path / "agentauth.sqlite3", isolation_level=None)) as other,
            ThreadPoolExecutor(3) as pool,
        ):
            # Recording the first refusal waits for the database's writer, and the others wait for
            # that thread.
            other.execute("BEGIN IMMEDIATE")
            asked = []
            for path in paths:
                asked.append(pool.submit(httpx.get, registry.url + path, timeout=HANGS_SECONDS))
                time.sleep(0.2)
            time.sleep(MOST_WAIT_SECONDS)
            other.execute("ROLLBACK")
            return [each.result() for each in asked]

    try:
        for _ in range(5):
            refused, late, probe = asked_while_one_waits()
            # On a busy machine the calls may reach the server in another order, or too late to
            # wait long enough.
            if (refused.status_code, late.status_code) == (401, 503):
                break
        assert refused.status_code == 401
        assert (late.status_code, late.json()["error"]) == (503, "temporarily_unavailable")
        assert int(late.headers["Retry-After"]) > 0
        assert probe.status_code == 200
        answers = [httpx.get(registry.url + path, timeout=HANGS_SECONDS) for path in paths]
        assert [each.status_code for each in answers] == [401, 200, 200]
    finally:
        registry.stop()


def has(signals: str, number: signal.Signals, pid: int) -> bool:
    """Whether the process catches this signal (`Cgt`) or has it pending (`Pnd`)."""
    lines = [line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    masks = [
        int(words[1], 16) for words in lines if words[0] in {f"Sig{signals}:", f"Shd{signals}:"}
    ]
    return any(mask >> (number - 1) & 1 for mask in masks)


def is_stopped(pid: int) -> bool:
    """Whether all its threads stopped: a thread still running would take the next signal first."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return all("\nState:\tT" in (task / "status").read_text() for task in tasks)


def continue_if_alive(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)


def test_RF_18_connected_clients_are_answered_during_shutdown(tmp_path: Path) -> None:
    registry = LiveRegistry(tmp_path, workers=2)
    registry.prepare()
    registry.start()
    assert registry.process
    server = registry.process.pid
    try:
        # The server answers as soon as the first worker has started.
        until(lambda: len(children(server)) == 2, "there are not two of them")
        workers = children(server)
        # Once they have installed their own signal handlers.
        until(
            lambda: all(has("Cgt", signal.SIGABRT, pid) for pid in workers),
            "not both have begun",
        )
        with ExitStack() as opened:
            # Stopped workers accept no connections, so these stay in the kernel's queue until the
            # workers wake up, told to stop.
            for pid in workers:
                os.kill(pid, signal.SIGSTOP)
                opened.callback(continue_if_alive, pid)
            until(lambda: all(map(is_stopped, workers)), "they do not stop", 20)
            address = ("127.0.0.1", registry.port)
            lines = [
                opened.enter_context(socket.create_connection(address, timeout=HANGS_SECONDS))
                for _ in range(9)
            ]
            for line in lines[1:]:
                line.sendall(head(registry, "GET /health/live"))
            registry.process.send_signal(signal.SIGTERM)
            until(
                lambda: all(has("Pnd", signal.SIGTERM, pid) for pid in workers),
                "they are not told",
                20,
            )
            for pid in workers:
                os.kill(pid, signal.SIGCONT)
            assert [status_of(line.recv(65_536)) for line in lines[1:]] == [200] * 8
            # A silent connection delays nothing.
            assert lines[0].recv(1) == b""
            assert registry.process.wait(HANGS_SECONDS) == 0
    finally:
        registry.stop()
    assert "Traceback" not in registry.log.read_text()
