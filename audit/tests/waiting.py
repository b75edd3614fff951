"""Wait until sessions block on a PostgreSQL lock."""

import time

import pytest
from django.db import connection

# Only in this database, because other test processes use others. A wait for a row names no
# database, but the waiting session holds locks that do.
_WAITING = """
SELECT count(DISTINCT waits.pid) FROM pg_locks waits JOIN pg_locks holds USING (pid)
JOIN pg_database d ON d.oid = holds.database
WHERE NOT waits.granted AND d.datname = current_database()
"""


def wait_for_lock_waiters(number: int = 1) -> None:
    """Return once `number` sessions wait for a lock; fail after a minute."""
    deadline = time.monotonic() + 60
    with connection.cursor() as cursor:
        while time.monotonic() < deadline:
            cursor.execute(_WAITING)
            if cursor.fetchone()[0] >= number:
                return
            # The sessions' own threads need the processor too.
            time.sleep(0.01)
    pytest.fail(f"no {number} sessions wait for a lock")
