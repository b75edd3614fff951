"""What a witness must never forget: the latest checkpoint of each log that it cosigned.

One SQLite file. `cosigning` decides what is cosigned.
"""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import quote

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.sdk.errors import WitnessStateError

# How long a request waits for the lock that other requests hold (s).
_BUSY_SECONDS: Final = 5
# EXTRA also syncs the directory, so that a power failure cannot undo a commit.
_DURABLE: Final = "PRAGMA synchronous = EXTRA"
_WITNESS: Final = "CREATE TABLE witness (vkey TEXT NOT NULL) STRICT"
_LATEST: Final = """
CREATE TABLE latest (
  origin TEXT PRIMARY KEY,
  size INTEGER NOT NULL CHECK (size >= 0),
  root BLOB NOT NULL CHECK (length(root) = 32),
  note TEXT NOT NULL
) STRICT
"""
# These triggers repeat two rules of `cosigning`, in case it has a bug: a size never shrinks, and
# one size has one root. They do not stop INSERT OR REPLACE.
_GROWS: Final = """
CREATE TRIGGER latest_grows BEFORE UPDATE ON latest
WHEN new.origin IS NOT old.origin OR new.size < old.size
  OR (new.size = old.size AND new.root IS NOT old.root)
BEGIN SELECT RAISE(ABORT, 'a log only grows'); END
"""
_STAYS: Final = """
CREATE TRIGGER latest_stays BEFORE DELETE ON latest
BEGIN SELECT RAISE(ABORT, 'a log is not forgotten'); END
"""


@dataclass(frozen=True, slots=True)
class Latest:
    """A log's latest cosigned checkpoint: `root` is 32 bytes; `note` has our signature and those we
    verified.
    """

    size: int
    root: bytes
    note: str


class State:
    """The state file.

    Every change is on disk before it is reported; a process may die at any moment.
    """

    def __init__(self, path: Path, *, vkey: str) -> None:
        """Open the state of the witness `vkey`.

        Raises WitnessStateError if there is none, or it is another witness's: a witness that starts
        empty under an old key would cosign a rewritten log.
        """
        self._path = path
        try:
            with self._open() as connection:
                found = connection.execute("SELECT vkey FROM witness").fetchall()
        except sqlite3.Error as error:
            raise WitnessStateError(
                f"{path} cannot be read as a witness's state: {error}."
            ) from None
        if found != [(vkey,)]:
            raise WitnessStateError(f"{path} is the state of another witness.")

    @classmethod
    def create(cls, path: Path, *, vkey: str) -> "State":
        """Create the state of a new witness. Raises WitnessStateError if the file exists."""
        try:
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        except FileExistsError:
            raise WitnessStateError(f"{path} already exists.") from None
        except OSError as error:
            raise WitnessStateError(f"{path} cannot be written: {error}.") from None
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as connection:
                connection.execute(_DURABLE)
                connection.execute("BEGIN IMMEDIATE")
                connection.execute(_WITNESS)
                connection.execute(_LATEST)
                connection.execute(_GROWS)
                connection.execute(_STAYS)
                connection.execute("INSERT INTO witness (vkey) VALUES (?)", (vkey,))
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            # This call made the file, and the next one must be able to.
            path.unlink(missing_ok=True)
            raise WitnessStateError(f"{path} cannot be written: {error}.") from None
        return cls(path, vkey=vkey)

    def latest(self, origin: str) -> Latest | None:
        """The latest cosigned checkpoint of a log. Raises TemporarilyUnavailableError."""
        with self._available() as connection:
            return _latest(connection, origin)

    def swap(self, origin: str, decide: Callable[[Latest | None], Latest]) -> Latest:
        """Replace the latest checkpoint by what `decide` returns; returns it once it is on disk.

        No other request, thread or process changes the latest checkpoint in between: of two
        concurrent requests, the second sees the result of the first. Raises what `decide` raises,
        with nothing changed, and TemporarilyUnavailableError.
        """
        with self._available() as connection:
            connection.execute("BEGIN IMMEDIATE")
            new = decide(_latest(connection, origin))
            connection.execute(
                "INSERT INTO latest (origin, size, root, note) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = "
                "excluded.root, note = excluded.note",
                (origin, new.size, new.root, new.note),
            )
            connection.execute("COMMIT")
        return new

    @contextmanager
    def _available(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._open() as connection:
                yield connection
        except sqlite3.Error as error:
            raise TemporarilyUnavailableError("The witness's state cannot be used.") from error

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        # `mode=rw` creates no file: if it was moved away, opening fails and the witness does not
        # start empty. Closing rolls back an open transaction.
        uri = f"file:{quote(str(self._path.absolute()))}?mode=rw"
        with closing(
            sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        ) as connection:
            connection.execute(_DURABLE)
            yield connection


def _latest(connection: sqlite3.Connection, origin: str) -> Latest | None:
    row = connection.execute(
        "SELECT size, root, note FROM latest WHERE origin = ?", (origin,)
    ).fetchone()
    return None if row is None else Latest(*row)
