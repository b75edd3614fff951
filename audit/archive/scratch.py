"""Folders for a segment on its way. Each is locked while it is used, so what a killed process left behind can be told from it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Final

PREFIX: Final = "agentauth-archive-"
# So many are looked at in one go: whatever lies there, nobody waits for long.
_MOST: Final = 1_000


@contextmanager
def scratch() -> Iterator[Path]:
    """An empty folder of our own in TMPDIR, mode 0700, gone at the end. What killed processes left there goes before.

    Raises OSError where there is no room.
    """
    _sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            held = _open(folder)
            fcntl.flock(held, fcntl.LOCK_EX)
            if folder.exists():
                break
            # Swept by somebody who came before the lock.
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(held)


def _sweep(place: Path) -> None:
    for folder in islice(place.glob(f"{PREFIX}*"), _MOST):
        # Another user's, a link, or just gone: not ours to take.
        with suppress(OSError):
            _sweep_one(folder)


def _sweep_one(folder: Path) -> None:
    held = _open(folder)
    try:
        if os.fstat(held).st_uid == os.geteuid():
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
    finally:
        os.close(held)


def _open(folder: Path) -> int:
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
