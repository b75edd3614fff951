"""The mark of the log's size in Redis, which the jobs advance once a second."""

from datetime import datetime

from django.conf import settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.copies import ContradictedError
from audit.history import check_mark, present_mark
from verifier.services import history
from verifier.services.home import look
from verifier.stores.mark import advance_mark, read_mark


def mark_history(*, now: datetime) -> None:
    """Advance the mark in Redis; hold the database if Redis knows more events, or another log.

    The mark is up to a second old, so it does not reveal the loss of events newer than that. Raises
    TemporarilyUnavailableError if Redis does not answer, and django.db errors.
    """
    if not settings.REDIS_URL:
        return
    there, mine = read_mark(), present_mark()
    try:
        if there is not None:
            check_mark(there)
    except ContradictedError as error:
        history.hold(look()[0], error.description)
        raise TemporarilyUnavailableError(error.description) from error
    if mine is not None:
        advance_mark(mine, instead_of=there if there and there.name != mine.name else None)
