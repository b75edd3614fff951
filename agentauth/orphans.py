"""Ends a process with the one that started it, even when that one is killed: an orphan would go on holding its port."""

import ctypes
import os
import signal
from typing import Final

# linux/prctl.h
_PR_SET_PDEATHSIG: Final = 1
_LIBC: Final = ctypes.CDLL(None)


def end_with_parent(parent: int, number: signal.Signals) -> None:
    """Have the kernel send this process the signal `number` as soon as its parent, the process `parent`, has ended.

    To be called in the child, after any change of its user (which would undo it). What counts is the parent's thread that
    forked, so that must be its main thread. Does nothing where there is no such call (macOS).
    """
    prctl = getattr(_LIBC, "prctl", None)
    if prctl is None:
        return
    prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        # It ended before the kernel was asked.
        os.kill(os.getpid(), number)
