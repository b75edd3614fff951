"""The mark in Redis of how far the log has come, moved on by the jobs once a second."""

from datetime import datetime

from django.conf import settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.copies import ContradictedError
from audit.history import check_mark, present_mark
from verifier.services import history
from verifier.services.home import look
from verifier.stores.mark import advance_mark, read_mark


def mark_history(*, now: datetime) -> None:
    """Tell Redis how far the log has come; hold everything where it knows more, or another log.

    The mark is at most a second old, and a database that loses less than what it says is not noticed by it. Raises
    TemporarilyUnavailableError where Redis does not answer, and django.db errors.
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
