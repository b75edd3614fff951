"""kill -9 of a server's main process: workers leave at once, and a restart gets the port.

The tests kill servers of their own.
"""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from benchmarks.cpu_time import pids_of
from tests.flows.test_slow_senders import LIVE, rest
from tests.flows.test_verifier_http import Verifier
from tests.live import ROOT, LiveRegistry, LiveServer
from tests.waiting import until

pytestmark = pytest.mark.flow
# Each stays in progress until closed: half a request, and a silent connection.
UNFINISHED = [b"POST /v1/verify HTTP/1.1\r\nContent-Length: 10\r\n\r\n{", LIVE[:20], b""]


@pytest.fixture(params=["web", "verifier"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LiveServer]:
    """A server of each kind, with two worker processes."""
    made: LiveRegistry | Verifier
    if request.param == "web":
        made = LiveRegistry(tmp_path, workers=2)
        made.prepare()
    else:
        made = Verifier(tmp_path, workers=2)
    made.start()
    yield made
    made.stop()


def is_gone(pid: int) -> bool:
    """Whether the process ended; a zombie counts too."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        # The second if it ends between opening and reading.
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"


Kill = Callable[[LiveServer], list[int]]


@pytest.fixture
def kill_first() -> Iterator[Kill]:
    """kill -9 of the main process alone; yields its children. Kills what is left at the end."""
    started: list[int] = []

    def kill(server: LiveServer) -> list[int]:
        assert server.process
        first, *others = pids_of(server.process.pid)
        started.extend(others)
        os.kill(first, signal.SIGKILL)
        server.process.wait(60)
        return others

    yield kill
    for pid in started:
        if not is_gone(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_killed_master_takes_its_workers_along(server: LiveServer, kill_first: Kill) -> None:
    assert server.process
    until(lambda: len(pids_of(server.process.pid)) == 3, "there are not two workers", 20)  # type: ignore[union-attr]
    with ExitStack() as opened:
        kept = []
        for sent in UNFINISHED * 4:
            line = socket.create_connection(("127.0.0.1", server.port), timeout=20)
            opened.enter_context(line).sendall(sent)
            kept.append(line)
        workers = kill_first(server)
        assert len(workers) == 2
        server.launch()
        # No caller gets an answer, least of all a success.
        assert [rest(each) for each in kept] == [b""] * len(kept)
        until(lambda: all(map(is_gone, workers)), "workers outlive their master", 10)
        server.wait_until_ready()
        assert server.process.poll() is None, server.log.read_text()[-2000:]
        # The new workers answer.
        assert not set(workers) & set(pids_of(server.process.pid))


@pytest.mark.long
def test_serve_killed_leaves_the_port_to_the_next_serve(tmp_path: Path, kill_first: Kill) -> None:
    """The embedded command: its web server and its jobs end with it."""
    registry = LiveRegistry(tmp_path, workers=1)
    registry.command = [sys.executable, "manage.py", "serve", "--no-setup-link"]
    registry.prepare()
    registry.start()
    try:
        assert registry.process
        until(lambda: len(pids_of(registry.process.pid)) == 4, "not all parts have begun")  # type: ignore[union-attr]
        parts = kill_first(registry)
        registry.launch()
        until(lambda: all(map(is_gone, parts)), "parts outlive serve", 60)
        registry.wait_until_ready()
        assert registry.process.poll() is None, registry.log.read_text()[-2000:]
    finally:
        registry.stop()


def test_a_child_whose_parent_has_ended_already_ends_as_well() -> None:
    code = (
        "import signal\nfrom agentauth.server.orphans import end_with_parent\n"
        "end_with_parent(1 << 22, signal.SIGKILL)\nprint('alive')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")
