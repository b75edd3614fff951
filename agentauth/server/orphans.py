"""End a process when its parent ends, even by SIGKILL: an orphan would keep its port in use."""

import ctypes
import os
import signal
from typing import Final

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process the signal `number` once its parent `parent` has ended.

    Call it in the child, after any change of its user, which would undo it. The kernel watches the
    thread of the parent that forked, so fork from the main thread. Does nothing on systems without
    prctl (macOS).
    """
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        # The parent ended before the call.
        os.kill(os.getpid(), number)
