"""Who waits for a lock of PostgreSQL, so that a test goes on only then."""

import time

import pytest
from django.db import connection

# Of this database alone: the tests of other processes wait beside, in theirs. A wait for a row names no database, but who
# waits holds other locks that do.
_WAITING = """
SELECT count(DISTINCT waits.pid) FROM pg_locks waits JOIN pg_locks holds USING (pid)
JOIN pg_database d ON d.oid = holds.database
WHERE NOT waits.granted AND d.datname = current_database()
"""


def until_waiting(number: int = 1) -> None:
    """Return once so many sessions wait for a lock; fail after 10 s."""
    deadline = time.monotonic() + 10
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(_WAITING)
            if cursor.fetchone()[0] >= number:
                return
    pytest.fail(f"no {number} sessions wait for a lock")
