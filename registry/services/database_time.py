"""What the database's clock says. What is forgotten too early may be done again, so no host's own clock decides that alone."""

from datetime import datetime

from django.db import connection


def not_ahead(now: datetime) -> datetime:
    """`now`, or the database's time where this host's clock is ahead of it. Raises django.db errors."""
    told = database_time()
    return now if told is None else min(now, told)


def not_behind(now: datetime) -> datetime:
    """`now`, or the database's time where this host's clock is behind it. Raises django.db errors."""
    told = database_time()
    return now if told is None else max(now, told)


def database_time() -> datetime | None:
    """None on SQLite, which runs on this host and has no clock but ours."""
    if connection.vendor != "postgresql":
        return None
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        told: datetime = cursor.fetchone()[0]
    return told
