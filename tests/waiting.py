"""Wait until something holds."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

# For everything to recover on a machine that does other work too.
SETTLE_SECONDS = 120


def until(
    true: Callable[[], object],
    else_say: str = "it did not come to be",
    seconds: float = SETTLE_SECONDS,
) -> float:
    """Wait until it holds, and return the seconds it took; while a database recovers: not yet."""
    began = time.monotonic()
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            if true():
                return time.monotonic() - began
        assert time.monotonic() - began < seconds, else_say
        time.sleep(0.1)


def until_listening(port: int, process: "subprocess.Popen[Any]", log: Path) -> None:
    """Wait until the process accepts connections, or fail with its log."""

    def listens() -> bool:
        assert process.poll() is None, log.read_text()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return True
        return False

    until(listens, f"nothing listens at {port}")
