"""Build the rows that many tests start from once, and give the next tests copies of them.

A test that starts from an untouched database gets the rows that the same steps wrote for an earlier
test, at most LIFETIME ago. After any other write, or if the clock differs, the steps run again.
"""

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.db import connection
from django.utils import timezone

from audit.tests.tampering import FROM_MIGRATIONS, execute

T = TypeVar("T")
# Well below the minute after which a session's next request writes to it (approvals/sessions.py).
LIFETIME = timedelta(seconds=30)
# Statements that leave the rows as they are.
_HARMLESS = ("SELECT", "SAVEPOINT", "RELEASE", "BEGIN")

Rows = dict[str, list[Any]]


@dataclass
class _Snapshot:
    """What one step wrote, and what it returned."""

    began: tuple[datetime, datetime]
    made: Any
    files: dict[str, bytes]
    removed: Rows
    inserted: Rows
    number: int = field(default_factory=itertools.count(1).__next__)

    def is_fresh(self, now: datetime) -> bool:
        return all(
            timedelta(0) <= moment - began <= LIFETIME
            for moment, began in zip((now, timezone.now()), self.began, strict=True)
        )


class Snapshots:
    """The snapshots of this process.

    `_at` is the last step of the running test. `_known`: no other write came since.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, _Snapshot] = {}
        # The rows after the step that was last taken: those before the next.
        self._rows: tuple[_Snapshot | None, Rows] = (None, {})
        self._at: _Snapshot | None = None
        self._known = False

    def begin_test(self) -> None:
        if self._watch not in connection.execute_wrappers:
            connection.execute_wrappers.append(self._watch)
        self._at, self._known = None, True

    def forget(self) -> None:
        """Forget all: a transactional test also deleted the rows of migrations."""
        self._kept.clear()

    def _watch(
        self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any
    ) -> Any:
        if self._known and not str(sql).startswith(_HARMLESS):
            self._known = False
        return execute(sql, params, many, context)

    def build(
        self, step: Callable[[], T], *names: object, now: datetime, copy: Callable[[T], T]
    ) -> T:
        """What `step` returns, and its rows and key files. `names` tell it from other steps.

        `copy` makes an object that the test may change. Rows are copied only inside a transaction
        that the test's end rolls back.
        """
        if not (self._known and connection.in_atomic_block):
            return step()
        folder = Path(settings.KEY_DIRECTORY)
        key = (self._at and self._at.number, names, settings.KEY_BACKEND)
        found = self._kept.get(key)
        if found is not None and found.is_fresh(now):
            for name, content in found.files.items():
                _write(folder / name, content)
            _apply(found)
        else:
            at, before = self._rows
            if at is None or at is not self._at:
                before = _dump()
            files = _files(folder)
            made = step()
            after = _dump()
            removed, inserted = _differences(before, after)
            began = self._at.began if self._at else (now, timezone.now())
            fresh = {name: (folder / name).read_bytes() for name in _files(folder) - files}
            found = _Snapshot(began, copy(made), fresh, removed, inserted)
            self._kept[key] = found
            self._rows = (found, after)
        self._at, self._known = found, True
        return copy(found.made)


def _files(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()} if folder.is_dir() else set()


def _write(path: Path, content: bytes) -> None:
    if path.exists():
        return
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    path.write_bytes(content)


def _tables() -> list[str]:
    if connection.vendor == "postgresql":
        names = _read(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace "
            "AND relkind IN ('r', 'p') AND NOT relispartition"
        )
    else:
        names = [(name,) for name in connection.introspection.table_names()]
    return sorted(name for (name,) in names if name not in FROM_MIGRATIONS)


def _read(sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def _dump() -> Rows:
    """All rows: as literals on PostgreSQL, as stored values on SQLite."""
    tables = _tables()
    found: Rows = {name: [] for name in tables}
    if connection.vendor == "postgresql":
        parts = [f"SELECT '{name}', quote_literal(t::text) FROM \"{name}\" t" for name in tables]  # noqa: S608 — names of tables
        for name, row in _read(" UNION ALL ".join(parts)):
            found[name].append(row)
        return found
    for name in tables:
        columns = [f'"{each[1]}"' for each in _read(f"PRAGMA table_info({name})")]
        # The plus keeps Django's converters away.
        values = ", ".join(f"+{each}" for each in columns)
        found[name] = _read(f'SELECT {values} FROM "{name}" ORDER BY rowid')  # noqa: S608 — names of columns
    return found


def _differences(before: Rows, after: Rows) -> tuple[Rows, Rows]:
    removed, inserted = {}, {}
    for name, rows in after.items():
        old, new = set(before[name]), set(rows)
        if gone := [each for each in before[name] if each not in new]:
            removed[name] = gone
        if more := [each for each in rows if each not in old]:
            inserted[name] = more
    return removed, inserted


def _apply(found: _Snapshot) -> None:
    if connection.vendor == "postgresql":
        # Without triggers and foreign keys, all in one message: the rows come from this database.
        execute(
            "; ".join(
                [
                    "SET LOCAL session_replication_role = replica",
                    *(
                        f'DELETE FROM "{name}" t WHERE t::text = {row}'  # noqa: S608 — quoted by PostgreSQL
                        for name, rows in found.removed.items()
                        for row in rows
                    ),
                    *(
                        f'INSERT INTO "{name}" SELECT (row).* FROM (VALUES '  # noqa: S608 — quoted by PostgreSQL
                        + ", ".join(f'({row}::"{name}")' for row in rows)
                        + ") AS given(row)"
                        for name, rows in found.inserted.items()
                    ),
                    "SET LOCAL session_replication_role = origin",
                ]
            )
        )
        return
    for name, rows in found.inserted.items():
        _insert(name, rows, found.removed.get(name, []))
    for name in found.removed.keys() - found.inserted.keys():
        _insert(name, [], found.removed[name])


def _insert(name: str, rows: list[Any], removed: list[Any]) -> None:
    """On SQLite, where the triggers stay: update the rows of these that were there, as the step."""
    columns = _read(f"PRAGMA table_info({name})")
    keys = [number for number, each in enumerate(columns) if each[5]]

    def key(row: Any) -> tuple[Any, ...]:
        return tuple(row[each] for each in keys)

    same = " AND ".join(f'"{columns[each][1]}" = %s' for each in keys)
    changes = ", ".join(f'"{each[1]}" = %s' for each in columns)
    places = ", ".join(["%s"] * len(columns))
    there, now = {key(row) for row in removed}, {key(row) for row in rows}
    with connection.cursor() as cursor:
        cursor.executemany(
            f'DELETE FROM "{name}" WHERE {same}',  # noqa: S608 — names of columns
            sorted(there - now),
        )
        cursor.executemany(
            f'UPDATE "{name}" SET {changes} WHERE {same}',  # noqa: S608 — names of columns
            [(*row, *key(row)) for row in rows if key(row) in there],
        )
        cursor.executemany(
            f'INSERT INTO "{name}" VALUES ({places})',  # noqa: S608 — names of columns
            [row for row in rows if key(row) not in there],
        )


SNAPSHOTS = Snapshots()
