"""What a process asks before it serves: each check holds, or the process ends with one line that says what to do.

Where the database is away, or has no tables yet, nothing can be asked. A server starts then all the same, and answers 503 until every check has held once.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from django.db import InterfaceError, OperationalError, ProgrammingError, connection

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from audit.roles import missing_rights
from registry.models import Installation
from registry.services.installation import disagreement, release_disagreement
from verifier.models import Home
from verifier.services.history import hold_of

logger = logging.getLogger(__name__)

# Not there, or not migrated yet.
_AWAY: Final = (OperationalError, InterfaceError, ProgrammingError)
_RETRY_SECONDS: Final = 1.0
# Of the rights that are missing.
_SHOWN: Final = 3
_GRANTS: Final = {
    "serving": "manage.py grant_serving_role",
    "verifier": "manage.py grant_verifier_role {}",
}


class StartRefusedError(Exception):
    """This process may not serve. One line: what is wrong, and what to do."""


def rights_suffice() -> None:
    """Its role of the database may do what this kind of process needs, as `audit/roles.py` says."""
    role, missing = missing_rights(START.kind)
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (f" and {len(missing) - _SHOWN} more" * (len(missing) > _SHOWN))
        raise StartRefusedError(
            f"the role {role} of DATABASE_URL has no {shown}. Run `{_GRANTS[START.kind].format(role)}` as the owner, as after every migrate."
        )


def settings_agree() -> None:
    """Its settings are those that were recorded for all processes."""
    rows = Installation.objects.filter(pk=Installation.ONLY)
    if reason := disagreement(rows.values_list("fingerprint", flat=True).first()):
        raise StartRefusedError(reason)


def release_may_run() -> None:
    """Its release may run on the database as it was migrated."""
    rows = Installation.objects.filter(pk=Installation.ONLY)
    if reason := release_disagreement(rows.values_list("release", flat=True).first()):
        raise StartRefusedError(reason)


# In this order: without rights the others could not even ask. Each raises StartRefusedError, or a django.db error where it cannot tell.
CHECKS: tuple[Callable[[], None], ...] = (rights_suffice, release_may_run, settings_agree)


class Start:
    """Whether the checks have held, for all threads of a process and those forked from it."""

    def __init__(self) -> None:
        self.pending = False
        # Of process: `serving`, or `verifier`.
        self.kind = "serving"
        self._asking = threading.Lock()
        self._next = 0.0

    def check(self) -> None:
        """Ask them all. Raises SystemExit where one does not hold; where the database is away they are asked later."""
        try:
            _ask()
        except StartRefusedError as error:
            raise SystemExit(f"agentauth: not started: {error}") from None
        except _AWAY as error:
            logger.warning(
                "the database is away, so nothing is answered before the start was checked: %s", error
            )
            self.pending = True
        finally:
            # Processes that are forked from this one must not share a connection.
            connection.close()

    def require(self) -> None:
        """Raises TemporarilyUnavailableError until they have held once; asks again at most once a second."""
        if not self.pending:
            return
        if self._asking.acquire(blocking=False):
            try:
                if self.pending and time.monotonic() >= self._next:
                    self._next = time.monotonic() + _RETRY_SECONDS
                    _ask()
                    self.pending = False
            except StartRefusedError as error:
                logger.error("not started: %s", error)  # noqa: TRY400 — it is no fault of the code
            except _AWAY:
                # Whoever asks the database next says so.
                connection.close()
            finally:
                self._asking.release()
        if self.pending:
            raise TemporarilyUnavailableError("This process has not started yet. Try again shortly.")


def _ask() -> None:
    for check in CHECKS:
        check()


# This process's own.
START = Start()


def check_start(kind: str = "serving") -> None:
    """For every kind of process, before it does anything: see `Start.check`."""
    START.kind = kind
    START.check()


def check_command() -> None:
    """For a command that changes something: it may act for the installation as a server may.

    A command with another SECRET_KEY would give out codes that no server takes; one on a database that was set back would
    begin a second history. Raises InvalidStateError, which says what to do, and django.db errors.
    """
    row = Installation.objects.filter(pk=Installation.ONLY).values_list("release", "fingerprint").first()
    release, fingerprint = row or (None, None)
    if reason := release_disagreement(release) or disagreement(fingerprint):
        raise InvalidStateError(f"Nothing was done: {reason}.")
    home = Home.objects.filter(pk=Home.ONLY).first()
    if home and (hold := hold_of(home)):
        raise InvalidStateError(f"Nothing was done: {hold.reason}.")
