"""`serve` reports what prevents a start before anything else."""

import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from agentauth.management.commands import serve


@pytest.mark.django_db
def test_a_port_in_use_stops_it_before_any_link_is_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    monkeypatch.setattr(serve, "call_command", lambda name, **_options: called.append(name))
    monkeypatch.setattr(serve, "supervise", lambda _commands: called.append("supervise"))
    monkeypatch.setattr(serve, "PORT_SECONDS", 0)
    out = StringIO()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(serve, "_port", lambda: port)
        with pytest.raises(CommandError, match=f"Port {port} .* in use"):
            call_command("serve", stdout=out)
    assert (called, out.getvalue()) == ([], "")
    call_command("serve", stdout=out)
    assert called == ["migrate", "ensure_keys", "setup_link", "supervise"]


def test_a_port_that_is_left_in_time_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "PORT_SECONDS", 60)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        looked: list[float] = []

        def sleep(seconds: float) -> None:
            looked.append(seconds)
            if len(looked) == 3:
                taken.close()

        monkeypatch.setattr("agentauth.management.commands.serve.time.sleep", sleep)
        serve.check_port_is_free(taken.getsockname()[1])
    assert len(looked) == 3


@pytest.fixture
def signals() -> Iterator[None]:
    """Restore the handlers of SIGTERM and SIGINT afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("deaths", "too_many"),
    [
        ([], False),
        ([0, 0, 0, 0], False),
        ([0, 0, 0, 0, 0], True),
        ([0, 1, 2, 3, 59], True),
        ([0, 1, 2, 3, 60], False),
        # Restarts before the last five are forgotten.
        ([0, 2, 2, 3, 60, 61], True),
        ([0, 1, 2, 3, 60, 61], False),
    ],
)
def test_part_that_dies_rarely_restarts_and_one_dying_at_once_does_not(
    deaths: list[float], too_many: bool
) -> None:
    assert serve._too_many(deque(deaths, maxlen=serve.RESTARTS)) == too_many


def test_where_a_part_keeps_dying_all_parts_are_stopped_and_it_is_said(
    tmp_path: Path, signals: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "POLL_SECONDS", 0.01)
    # Long enough for the slowest machine: another test covers the minute.
    monkeypatch.setattr(serve, "RESTARTS_SECONDS", 3600.0)
    died, ran = tmp_path / "died", tmp_path / "ran"
    # It waits for the other process, so that there is one to stop.
    dying = (
        f"import os, time\nwhile not os.path.exists({str(ran)!r}): "
        f"time.sleep(0.01)\nopen({str(died)!r}, 'a').write('x')"
    )
    running = (
        f"import os, time\nopen('{ran}.draft', "
        f"'w').write(str(os.getpid()))\nos.rename('{ran}.draft', {str(ran)!r})\ntime.sleep(600)"
    )
    with pytest.raises(SystemExit, match="keeps stopping"):
        serve.supervise([[sys.executable, "-c", running], [sys.executable, "-c", dying]])
    assert serve.RESTARTS <= len(died.read_text()) <= serve.RESTARTS + 1
    with pytest.raises(ProcessLookupError):
        os.kill(int(ran.read_text()), 0)
