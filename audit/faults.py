"""Named points where a process under test kills itself. Outside test settings nothing here does anything."""

import os
import signal

from django.conf import settings


def fault_point(name: str) -> None:
    """Die here as by `kill -9` if FAULT_AT names this point; settings leave FAULT_AT empty outside tests.

    `name` is `act.place`, such as "sequence.after_head".
    """
    if settings.FAULT_AT and name == settings.FAULT_AT:
        os.kill(os.getpid(), signal.SIGKILL)
