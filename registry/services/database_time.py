"""The database's clock, so that one host's wrong clock cannot end a waiting period early.

If it could, a replay cache would drop a spent proof that could then be used again, or an account
recovery would become ready before its wait is over.
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
    """The database's time; None on SQLite, which uses this host's. Raises django.db errors."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        told: datetime = cursor.fetchone()[0]
    return told
