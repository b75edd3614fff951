"""Sets a test database back while its copies outside remain."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from django.db import connection, transaction
from django.utils import timezone

from approvals.services.continue_after_restore import continue_after_restore
from audit.models import LogBreak
from audit.services import seal_audit
from registry.tests.cast import TESTER
from verifier.services import rollback_hold
from verifier.services.closing_before_restore import close_history
from verifier.services.replay_epochs import read_or_create_row


class _SetBackError(Exception):
    pass


@contextmanager
def set_back() -> Iterator[None]:
    """Back up at the start; what the body does to the database is lost at its end."""
    seal_audit(now=timezone.now())
    with suppress(_SetBackError), transaction.atomic():
        yield
        raise _SetBackError


def close() -> int:
    """Close the history, with no leases to wait for."""
    # PostgreSQL counts the connections. An earlier test's thread may leave its own to the garbage
    # collector, because Django's reference cycle holds it. A collection takes 0.3 s.
    if connection.vendor == "postgresql":
        gc.collect()
    return close_history(
        operator="alice", actor=TESTER, clock=timezone.now, wait=lambda _seconds: None
    )


def restored(
    happens: Callable[[], object] = lambda: None, end: Callable[[], object] = close
) -> LogBreak:
    """A backup, `happens` and `end`, then the backup in place of the database, which goes on."""
    with set_back():
        happens()
        end()
    rollback_hold.hold(read_or_create_row()[0], "It was set back.")
    done = continue_after_restore(operator="alice", actor=TESTER, now=timezone.now())
    return LogBreak.objects.get(pk=done.log)
