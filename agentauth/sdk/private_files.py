"""Files that hold a key: readable by their owner alone, written atomically.

What they contain is decided elsewhere.
"""

import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .errors import KeyFileError

MAX_BYTES: Final = 1_048_576
_POSIX: Final = os.name == "posix"


def read_private(path: Path) -> bytes | None:
    """The file's content, at most MAX_BYTES + 1; None if it does not exist.

    Raises KeyFileError if other users can read it.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError:
        return None
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}.") from None
    with os.fdopen(descriptor, "rb") as file:
        # Checked on the open file, not by name, so that it cannot be swapped in between.
        _check_owner(path, os.fstat(file.fileno()))
        return file.read(MAX_BYTES + 1)


def create_private(path: Path, text: str) -> bool:
    """Create the file; returns False, changing nothing, if the name exists. Raises KeyFileError."""
    temporary = _write_beside(path, text)
    try:
        # A hard link fails where the name exists: of two processes with two new keys, one wins.
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        raise KeyFileError(f"{path} cannot be written: {error.strerror}.") from None
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path)
    return True


def replace_private(path: Path, text: str) -> None:
    """Replace the file atomically: a crash leaves the old content or the new.

    Raises KeyFileError.
    """
    temporary = _write_beside(path, text)
    try:
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {error.strerror}.") from None
    _sync_directory(path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file's lock, one process at a time; it ends with it. Raises KeyFileError.

    Creates the file's folder if it is missing.
    """
    # A separate lock file, since the locked file itself gets replaced.
    lock = path.with_name(f".{path.name}.lock")
    owner = os.getpid()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise KeyFileError(f"{lock} cannot be written: {error.strerror}.") from None
    try:
        try:
            _lock(descriptor)
        except OSError as error:
            raise KeyFileError(f"{lock} cannot be locked: {error.strerror}.") from None
        try:
            yield
        finally:
            # A process that was forked meanwhile has the descriptor too: closing ours would leave
            # the lock with it, and it must not end ours.
            if os.getpid() == owner:
                _unlock(descriptor)
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(descriptor, msvcrt.LK_LOCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX)


def _unlock(descriptor: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        os.lseek(descriptor, 0, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _check_owner(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyFileError(f"{path} is not a file.")
    if _POSIX and status.st_mode & 0o077:
        raise KeyFileError(
            f"{path} can be read by others (mode {stat.S_IMODE(status.st_mode):04o}), so its "
            "key may be known."
            f" Make a new key, or if you are sure it was not read: chmod 600 '{path}'"
        )
    if _POSIX and status.st_uid != os.geteuid():
        raise KeyFileError(f"{path} belongs to another user.")


def _write_beside(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # 0600 at creation: with a later chmod, other users could open it in between.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {error.strerror}.") from None
    return temporary


def _sync_directory(path: Path) -> None:
    if not _POSIX:
        return
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
