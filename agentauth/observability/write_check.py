"""Whether the database accepts writes: commit a small one, and check this process's rights."""

from typing import Any, Final

from django.db import OperationalError, connection, transaction

from agentauth.postgresql.base import use_short_timeouts_here
from agentauth.startup_checks import START
from audit.db.role_rights import missing_rights

# One process commits at a time. A commit that waits for a synchronous replica keeps the lock, and
# cannot be cancelled (PostgreSQL would acknowledge it): the others time out at the lock, so that
# one connection hangs and not one per try.
_LOCK: Final = 0x77726974
# It gets a transaction id, so its commit is written and waited for like any other. It changes no
# row and needs no right.
_COMMITS: Final = (
    "SELECT pg_logical_emit_message(true, 'agentauth', ''), "
    "current_setting('transaction_read_only')"
)
# A 1 MB sort that spills to disk: on a full disk, existing pages still have room for a small row,
# so a small write proves nothing.
_FILLS: Final = (
    "SELECT count(*) FROM (SELECT repeat(md5(n::text), 32) FROM generate_series(1, 1024) n ORDER "
    "BY 1) sorted"
)


class NotWritableError(Exception):
    """The database accepts writes, but this process cannot make them. The text is for the log."""


def try_to_write() -> None:
    """Commit a small write. Call it in a thread that may hang for seconds.

    Raises django.db errors or NotWritableError.
    """
    use_short_timeouts_here()
    try:
        role, missing = missing_rights(START.kind)
        if missing:
            raise NotWritableError(f"the role {role} lacks {', '.join(missing)}")
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                _write(cursor)
            else:
                # A field in the file's header that SQLite itself does not use.
                cursor.execute("PRAGMA user_version = 1")
    finally:
        connection.close()


def _write(cursor: Any) -> None:
    cursor.execute("SET LOCAL work_mem = '64kB'")
    cursor.execute(_FILLS)
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    cursor.execute(_COMMITS)
    if cursor.fetchone()[1] == "on":
        raise OperationalError("the database is read-only")
