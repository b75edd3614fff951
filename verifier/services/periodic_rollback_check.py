"""How running jobs detect a database that was set back: by the mark in Redis and by the store."""

from datetime import datetime

from django.conf import settings

from audit.checkpoints.rollback_check import check_mark, present_mark
from verifier.services.rollback_hold import holding
from verifier.stores.log_size_mark import advance_mark, read_mark


def mark_history(*, now: datetime) -> None:
    """Advance the mark of the log's size in Redis.

    If Redis knows more events or another log, hold the database. The mark is up to a second old, so
    it does not reveal the loss of newer events. Raises ContradictedError if it held the database,
    TemporarilyUnavailableError if Redis does not answer, and django.db errors.
    """
    if not settings.REDIS_URL:
        return
    there, mine = read_mark(), present_mark()
    if there is not None:
        with holding():
            check_mark(there)
    if mine is not None:
        advance_mark(mine, instead_of=there if there and there.name != mine.name else None)
