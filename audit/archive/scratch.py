"""Temporary folders for segments. A lock marks each as in use, so leftovers can be removed."""

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
# So that a crowded TMPDIR delays no caller.
_MAX_FOLDERS_PER_SWEEP: Final = 1_000


@contextmanager
def scratch() -> Iterator[Path]:
    """A new empty folder in TMPDIR, mode 0700, deleted at the end.

    First deletes the folders that killed processes left behind. Raises OSError if there is no room.
    """
    _sweep(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX))
        with suppress(FileNotFoundError):
            held = _open(folder)
            fcntl.flock(held, fcntl.LOCK_EX)
            if folder.exists():
                break
            # Another process swept the folder before it was locked: make another.
            os.close(held)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        os.close(held)


def _sweep(place: Path) -> None:
    for folder in islice(place.glob(f"{PREFIX}*"), _MAX_FOLDERS_PER_SWEEP):
        # Skip a folder that is locked, a link, another user's, or already gone.
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
