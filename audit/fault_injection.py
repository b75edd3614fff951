"""Fault injection: named points where a process under test kills itself. Inactive outside tests."""

import os
import signal
from pathlib import Path

from django.conf import settings


def fault_point(name: str) -> None:
    """Send SIGKILL to this process if FAULT_AT names this point. FAULT_AT is empty outside tests.

    `name` is `operation.point`, such as "sequence.after_head". FAULT_AT is a name, or `@` and the
    path of a file that holds one, so that a test can change it while the server runs.
    """
    if settings.FAULT_AT and name == _read_point(settings.FAULT_AT):
        os.kill(os.getpid(), signal.SIGKILL)


def _read_point(told: str) -> str:
    if not told.startswith("@"):
        return told
    path = Path(told[1:])
    return path.read_text() if path.exists() else ""
