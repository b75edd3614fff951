"""Checks at startup: each one passes, or the process ends with one line that says what to do.

If the database is unavailable, or has no tables yet, a server starts anyway and answers 503 until
every check has passed once.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from django.conf import settings
from django.db import InterfaceError, OperationalError, ProgrammingError, connection
from django.db.migrations.exceptions import NodeNotFoundError
from django.db.migrations.executor import MigrationExecutor

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from audit.db.role_rights import (
    beyond_verifier,
    is_verifier_role,
    may_change_log,
    missing_rights,
)
from registry.models import Installation
from registry.release_compatibility import RELEASE
from registry.services.settings_agreement import (
    Halt,
    disagreement,
    is_database_ahead,
    release_disagreement,
)
from verifier.services import rollback_hold
from verifier.services.host_clock_check import clock_problem
from verifier.services.replay_epochs import contradiction, read_or_create_row, read_row

# Named for operators: its level is set by name (agentauth/observability/logging_config.py).
logger = logging.getLogger("agentauth.startup")

# The database is unavailable, or not migrated yet.
_AWAY: Final = (OperationalError, InterfaceError, ProgrammingError)
_RETRY_SECONDS: Final = 1.0
# The error names at most this many missing rights.
_SHOWN: Final = 3
_GRANTS: Final = {
    "serving": "grant_serving_role",
    "verifier": "grant_verifier_role {}",
}


class StartRefusedError(Exception):
    """This process may not serve. The text is one line: what is wrong, and what to do."""


def rights_suffice() -> None:
    """The database role has the rights that this process needs (`audit/db/role_rights.py`)."""
    role, missing = missing_rights(START.kind)
    if missing and START.kind == "serving" and is_verifier_role():
        # Granting it what it lacks would give the verifiers' processes every right.
        raise StartRefusedError(
            f"DATABASE_URL names {role}, the role of the verifier's processes. Name the serving "
            "role there, as in the environment of the other web servers and jobs"
        )
    if missing:
        shown = ", ".join(missing[:_SHOWN]) + (
            f" and {len(missing) - _SHOWN} more" * (len(missing) > _SHOWN)
        )
        raise StartRefusedError(
            f"the role {role} of DATABASE_URL lacks {shown}. Run `{settings.OWNER_COMMAND} "
            f"{_GRANTS[START.kind].format(role)}`, as after every migrate."
        )


def verifier_role_is_bounded() -> None:
    """In production the database itself keeps a verifier from changing what it only reads."""
    if settings.DEVELOPMENT:
        return
    if beyond := beyond_verifier(known_alone=is_database_ahead()):
        shown = ", ".join(beyond[:_SHOWN]) + (" and more" if len(beyond) > _SHOWN else "")
        raise StartRefusedError(
            f"the role of DATABASE_URL has more rights than a verifier needs ({shown}). Set "
            f"DATABASE_URL to a role that `{settings.OWNER_COMMAND} grant_verifier_role ROLE` has "
            "restricted."
        )


def _role_is_bounded() -> None:
    if START.kind == "verifier":
        verifier_role_is_bounded()
    elif not settings.DEVELOPMENT and may_change_log():
        raise StartRefusedError(
            "the role of DATABASE_URL may change the log, as the owner of the tables or a "
            "superuser can. Name the serving role there, which "
            f"`{settings.OWNER_COMMAND} grant_serving_role` restricts"
        )


def settings_agree() -> None:
    """The settings of this process match those recorded for all processes."""
    rows = Installation.objects.filter(pk=Installation.ONLY)
    if reason := disagreement(rows.values_list("fingerprint", flat=True).first()):
        raise StartRefusedError(reason)


def replay_cache_agrees() -> None:
    """The settings choose the replay cache that the row names, unless none was used yet."""
    row, _database_now = read_row()
    if reason := contradiction(row):
        raise StartRefusedError(reason)


def release_may_run() -> None:
    """This release may run on the database at its present migration state."""
    rows = Installation.objects.filter(pk=Installation.ONLY)
    if reason := release_disagreement(rows.values_list("release", flat=True).first()):
        raise StartRefusedError(reason)


# Rights first: the other checks cannot query without them. Each raises StartRefusedError, or a
# django.db error if it cannot tell.
CHECKS: tuple[Callable[[], None], ...] = (
    rights_suffice,
    _role_is_bounded,
    release_may_run,
    settings_agree,
    replay_cache_agrees,
)


class Start:
    """Whether the checks have passed, for all threads of a process and all its forks."""

    def __init__(self) -> None:
        self.pending = False
        # The kind of process: `serving` or `verifier`.
        self.kind = "serving"
        self._asking = threading.Lock()
        self._next = 0.0

    def check(self) -> None:
        """Run all checks. Raises SystemExit if one fails.

        If the database is unavailable, `require` runs them later.
        """
        try:
            _ask()
            _say_started()
            for wrong in filter(None, (missing_migrations(), clock_problem())):
                # It starts nevertheless, and is not ready. `jobs` may have no probe to say so.
                logger.error("%s", wrong)
        except StartRefusedError as error:
            raise SystemExit(f"agentauth: not started: {error}") from None
        except _AWAY as error:
            logger.warning("%s; answering 503 until the startup checks have passed", _why(error))
            self.pending = True
        finally:
            # Processes forked from this one must not share a connection.
            connection.close()

    def require(self) -> None:
        """Raises TemporarilyUnavailableError until all checks passed once; tries once a second."""
        if not self.pending:
            return
        if self._asking.acquire(blocking=False):
            try:
                if self.pending and time.monotonic() >= self._next:
                    self._next = time.monotonic() + _RETRY_SECONDS
                    _ask()
                    self.pending = False
                    _say_started()
            except StartRefusedError as error:
                logger.error("not started: %s", error)  # noqa: TRY400 — not a bug, so no traceback
            except _AWAY:
                # The next query logs that the database is unavailable.
                connection.close()
            finally:
                self._asking.release()
        if self.pending:
            raise TemporarilyUnavailableError(
                "This process has not started yet. Try again shortly."
            )


def missing_migrations() -> str:
    """Which migrations the database lacks, and what to do; empty if none.

    Raises django.db errors.
    """
    try:
        executor = MigrationExecutor(connection)
    except NodeNotFoundError:
        return "the database is too old for this release: see docs/upgrade.md"
    plan = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if not plan:
        return ""
    return (
        f"the database lacks {len(plan)} migrations of this release, first {plan[0][0]}: run "
        f"`{settings.OWNER_COMMAND} init_production VERIFIER_ROLE`, then restart"
    )


def _why(error: Exception) -> str:
    """One line about an error of _AWAY."""
    said = str(error).partition("\n")[0].rstrip(".")
    if isinstance(error, ProgrammingError):
        return (
            f"the database is not migrated ({said}): run `{settings.OWNER_COMMAND} init_production "
            "VERIFIER_ROLE`"
        )
    return f"the database is unavailable ({said})"


def _say_started() -> None:
    # The first line in the log of each process: without it, the process did not come this far.
    logger.info("the startup checks have passed: release %s", RELEASE)


def _ask() -> None:
    for check in CHECKS:
        check()


# This process's own.
START = Start()


def check_start(kind: str = "serving") -> None:
    """Run the checks (`Start.check`). Every kind of process calls this before anything else."""
    START.kind = kind
    START.check()


def check_command(*, check_settings: bool, check_hold: bool) -> None:
    """See that a command may change something: with both checks, as for a server.

    A command with another SECRET_KEY would issue codes that no server accepts; on a restored
    database it would begin a second history. Raises InvalidStateError, which says what to do, and
    django.db errors.
    """
    if check_settings:
        row = (
            Installation.objects.filter(pk=Installation.ONLY)
            .values_list("release", "fingerprint")
            .first()
        )
        release, fingerprint = row or (None, None)
        if reason := release_disagreement(release) or disagreement(fingerprint):
            raise InvalidStateError(f"Nothing was done: {reason}.")
    if check_hold:
        # With other settings, the history cannot be compared with the records outside.
        refuse(
            rollback_hold.halt(read_or_create_row()[0])
            if check_settings
            else rollback_hold.hold_of(read_row()[0])
        )


def refuse(halt: Halt | None) -> None:
    """Raises InvalidStateError if there is a halt."""
    if halt:
        raise InvalidStateError(f"Nothing was done: {halt.reason}.")
