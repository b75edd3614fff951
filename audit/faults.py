"""Named points where a process under test kills itself. Outside test settings nothing here does anything."""

import os
import signal
from pathlib import Path

from django.conf import settings


def fault_point(name: str) -> None:
    """Die here as by `kill -9` if FAULT_AT names this point; settings leave FAULT_AT empty outside tests.

    `name` is `act.place`, such as "sequence.after_head". FAULT_AT is a name, or `@` and the path of a file that holds
    one, so that a test can move the point while the server runs.
    """
    if settings.FAULT_AT and name == _named(settings.FAULT_AT):
        os.kill(os.getpid(), signal.SIGKILL)


def _named(told: str) -> str:
    if not told.startswith("@"):
        return told
    path = Path(told[1:])
    return path.read_text() if path.exists() else ""
