"""A store in a folder, for development and tests, or on a file system that is write-once."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.stores import CHUNK_BYTES, ImmutableError, Sink, check_key, digest_of, small

# Incomplete files are only here; the name is not a valid key.
_DRAFTS: Final = ".drafts"
_READ_ONLY: Final = 0o444
# A draft not written to for this long belongs to a killed process. If its writer lives, it fails
# and retries.
DRAFT_SECONDS: Final = 3_600


class FolderStore:
    """Files that appear complete, are never replaced, and are read-only from the start."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __repr__(self) -> str:
        return f"file:{self._root}"

    def put_once(self, key: str, data: bytes | Path) -> None:
        target = self._root / check_key(key)
        with _available(self):
            _make_folder(target.parent)
            draft = self._draft(data)
            try:
                # Unlike a rename, a hard link never replaces an existing file.
                os.link(draft, target)
            except FileExistsError:
                if digest_of(target) != digest_of(draft):
                    raise ImmutableError(f"{key} exists in {self!r} with other content.") from None
            finally:
                draft.unlink()
            # Also for an existing file: the process that linked it may have died before its sync.
            _sync(target.parent)

    def get(self, key: str) -> bytes | None:
        return small(self, key)

    def fetch(self, key: str, into: Sink) -> bool:
        with _available(self):
            try:
                file = (self._root / check_key(key)).open("rb")
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return False
            with file:
                _copy(file, into)
            return True

    def keys(self, prefix: str = "", after: str = "") -> Iterator[str]:
        # All keys with this prefix are below its folder.
        top = self._root / prefix.rpartition("/")[0]
        with _available(self):
            found = [
                path.relative_to(self._root).as_posix()
                for folder, _, names in os.walk(top, onerror=_unless_absent)
                for path in (Path(folder) / name for name in names)
            ]
        drafts = f"{_DRAFTS}/"
        return iter(
            sorted(
                key
                for key in found
                if key.startswith(prefix) and key > after and not key.startswith(drafts)
            )
        )

    def _draft(self, data: bytes | Path) -> Path:
        drafts = self._root / _DRAFTS
        drafts.mkdir(mode=0o700, exist_ok=True)
        draft = drafts / secrets.token_hex(16)
        try:
            with draft.open("xb") as file:
                # Delete old drafts first: on a full disk they may be what fills it.
                _clear(drafts, os.fstat(file.fileno()).st_mtime - DRAFT_SECONDS)
                if isinstance(data, bytes):
                    file.write(data)
                else:
                    with data.open("rb") as source:
                        _copy(source, file)
                file.flush()
                os.fchmod(file.fileno(), _READ_ONLY)
                os.fsync(file.fileno())
        except BaseException:
            # Otherwise each failed attempt on a full disk would leave another partial file.
            draft.unlink(missing_ok=True)
            raise
        return draft


def _clear(drafts: Path, before: float) -> None:
    """Delete drafts last written before `before`.

    That is the file system's time, so that clocks of different hosts are not compared.
    """
    with os.scandir(drafts) as entries:
        for entry in entries:
            # Another process may delete it at the same time.
            with contextlib.suppress(FileNotFoundError):
                if (
                    entry.is_file(follow_symlinks=False)
                    and entry.stat(follow_symlinks=False).st_mtime < before
                ):
                    Path(entry.path).unlink()


def _copy(source: IO[bytes], into: Sink) -> None:
    while chunk := source.read(CHUNK_BYTES):
        into.write(chunk)


def _unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with contextlib.suppress(FileExistsError):
        folder.mkdir()
    _sync(folder.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _available(store: FolderStore) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise TemporarilyUnavailableError(
            f"The log's store {store!r} cannot be used: {error.strerror}."
        ) from error
