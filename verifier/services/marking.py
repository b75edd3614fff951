"""What running jobs find out about a database that was set back: by the mark of the log's size in Redis, and by the store."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from django.conf import settings

from audit.copies import ContradictedError, StoreChangedError
from audit.history import check_mark, present_mark
from verifier.services import history, home
from verifier.stores.mark import advance_mark, read_mark


def mark_history(*, now: datetime) -> None:
    """Advance the mark in Redis; hold the database if Redis knows more events, or another log.

    The mark is up to a second old, so it does not reveal the loss of events newer than that. Raises ContradictedError if it
    held the database, TemporarilyUnavailableError if Redis does not answer, and django.db errors.
    """
    if not settings.REDIS_URL:
        return
    there, mine = read_mark(), present_mark()
    if there is not None:
        with holding():
            check_mark(there)
    if mine is not None:
        advance_mark(mine, instead_of=there if there and there.name != mine.name else None)


@contextmanager
def holding() -> Iterator[None]:
    """Hold the database if the body finds that the log is not what is known of it outside, as at a start."""
    try:
        yield
    except StoreChangedError:
        # Another store says nothing about this database.
        raise
    except ContradictedError as error:
        began = time.monotonic()
        row, database_now = home.look()
        history.hold(row, error.description)
        # This process stops here, the others within a second.
        home.LEASE.take(row, database_now, began)
        raise
