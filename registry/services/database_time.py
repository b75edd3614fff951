"""The database's clock.

A spent proof that is forgotten too early could be used again, and a recovery's wait could be cut
short. So the clock of one host never decides that alone.
"""

from datetime import datetime

from django.db import connection


def not_ahead(now: datetime) -> datetime:
    """`now`, or the database's time if this host's clock is ahead. Raises django.db errors."""
    told = database_time()
    return now if told is None else min(now, told)


def not_behind(now: datetime) -> datetime:
    """`now`, or the database's time if this host's clock is behind. Raises django.db errors."""
    told = database_time()
    return now if told is None else max(now, told)


def database_time() -> datetime | None:
    """None on SQLite, which runs on this host and has the same clock."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        told: datetime = cursor.fetchone()[0]
    return told
