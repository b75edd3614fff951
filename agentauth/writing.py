"""Whether anything can be written: a small write that is really committed, and the rights that this kind of process needs."""

from typing import Any, Final

from django.db import OperationalError, connection, transaction

from agentauth.postgresql.base import answer_soon_here
from agentauth.startup import START
from audit.roles import missing_rights

# Of all processes one commits at a time. A commit that waits for a synchronous replica keeps the lock, and cannot be called off
# (PostgreSQL would acknowledge it): the others give up at the lock, so that one connection hangs and not one for each try.
_LOCK: Final = 0x77726974
# It has a transaction id, so its commit is written and waited for like any other. It changes no row and takes no right.
_COMMITS: Final = (
    "SELECT pg_logical_emit_message(true, 'agentauth', ''), current_setting('transaction_read_only')"
)
# A sort of 1 MB that does not fit into memory: what is on disk already has room for a small row when nothing else has.
_FILLS: Final = (
    "SELECT count(*) FROM (SELECT repeat(md5(n::text), 32) FROM generate_series(1, 1024) n ORDER BY 1) sorted"
)


class NotWritableError(Exception):
    """The database would take it, and something else is in the way. The text is for the log."""


def try_to_write() -> None:
    """In a thread that may hang for some seconds. Raises django.db errors, or NotWritableError."""
    answer_soon_here()
    try:
        role, missing = missing_rights(START.kind)
        if missing:
            raise NotWritableError(f"the role {role} has no {', '.join(missing)}")
        with transaction.atomic(), connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                _write(cursor)
            else:
                # The header of the file; nobody reads it.
                cursor.execute("PRAGMA user_version = 1")
    finally:
        connection.close()


def _write(cursor: Any) -> None:
    cursor.execute("SET LOCAL work_mem = '64kB'")
    cursor.execute(_FILLS)
    cursor.execute("SELECT pg_advisory_xact_lock(%s)", [_LOCK])
    cursor.execute(_COMMITS)
    if cursor.fetchone()[1] == "on":
        raise OperationalError("the database reads only")
