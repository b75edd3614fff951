"""Health endpoints: the process answers; what it needs in order to serve, each named as ok or failing; whether it signs."""

import logging
import threading
import time
from collections.abc import Callable
from functools import cache

from django.db import DatabaseError, InterfaceError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from agentauth import metrics
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import Signer
from agentauth.startup import START
from audit.backlog import MAX_WAITING_EVENTS
from audit.models import QueueEntry
from kms.backends import TRIAL
from kms.services import may_sign, signer
from verifier.services import home

logger = logging.getLogger(__name__)

# What was found is kept this long, so that probes, however many, do not load the database.
KEPT_SECONDS = 1.0
RETRY_SECONDS = 5
# Signing is tried so often, since homes of keys may be paid by the call; sooner where it failed. Nobody waits longer for it.
SIGNED_SECONDS, NOT_SIGNED_SECONDS = 30.0, 5.0
WAIT_SECONDS = 0.2
# In the environment of a request: it came to a process that signs nothing, and need not be allowed to.
SIGNS_NOTHING = "agentauth.signs_nothing"


class NotReadyError(Exception):
    """A condition that does not hold. The text is for the log."""


def database() -> None:
    """It answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def migrations() -> None:
    """Its tables are those of this code."""
    _migrated()


@cache
def _migrated() -> None:
    # Raising is not kept, holding is: nobody takes a migration back under a running process.
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        raise NotReadyError("migrations wait to be applied")


def token_key() -> None:
    """There is a key to sign tokens with. Whether it does is told apart, since verify goes on without."""
    if not may_sign(purpose="token", now=timezone.now()):
        raise NotReadyError("no key may sign tokens now; run manage.py rotate_key token")


def audit_queue() -> None:
    """Events get their numbers. Where they do not, what ends something is done all the same, and needs this process."""
    if QueueEntry.objects.order_by("pk")[max(0, MAX_WAITING_EVENTS - 1) :][:1].exists():
        raise NotReadyError("more events wait for their number than may")


def clock() -> None:
    """This host's is the database's: else it changes nothing and decides nothing."""
    if off := home.LEASE.clock_off():
        raise NotReadyError(f"the clock of this host is {off.seconds_ahead} s ahead of the database's")


def configuration() -> None:
    """This process may act for the installation: its settings are those of all others, and it was checked at its start."""
    START.require()
    _not_halted(configuration.__name__)


def history() -> None:
    """The database is as new as what is known outside: it was not set back, or an operator decided how it goes on."""
    _not_halted(history.__name__)


def _not_halted(check: str) -> None:
    halt = home.LEASE.halt()
    if halt is not None and halt.check == check:
        raise NotReadyError(halt.reason)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (database, migrations, configuration, history, token_key, audit_queue, clock)
}
# What is told and keeps no request away: revoking and pages go on without either, verifying without the second.
TOLD_ONLY = {"audit_queue", "signing"}


class Readiness:
    """The state of each check, found again when it is older than KEPT_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, bool] = {}
        self._until = 0.0

    def states(self) -> dict[str, bool]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = {name: _holds(name, check) for name, check in CHECKS.items()}
                self._until = time.monotonic() + KEPT_SECONDS
            return self._found


class Signing:
    """Whether the key of tokens signs, tried in a thread of its own, so that a slow home of keys holds up no probe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signs = False
        self._until = 0.0
        self._trial: threading.Thread | None = None

    def holds(self) -> bool:
        """As it was found last; not before it was found once."""
        with self._lock:
            if time.monotonic() >= self._until and not (self._trial and self._trial.is_alive()):
                try:
                    key = signer(purpose="token", now=timezone.now())
                except (TemporarilyUnavailableError, DatabaseError, InterfaceError):
                    # What the log has to say of it, it says there, or as a check that fails.
                    return False
                self._trial = threading.Thread(target=self._try, args=(key,), name="signing", daemon=True)
                self._trial.start()
                self._trial.join(WAIT_SECONDS)
            return self._signs

    def _try(self, key: Signer) -> None:
        signs = False
        try:
            key.sign(TRIAL)
            signs = True
        except TemporarilyUnavailableError:
            # The log has it already.
            return
        finally:
            # Also after an error nobody foresaw: what was found before says nothing then.
            self._signs = signs
            self._until = time.monotonic() + (SIGNED_SECONDS if signs else NOT_SIGNED_SECONDS)


_readiness, _signing = Readiness(), Signing()


def _holds(name: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception as error:  # noqa: BLE001 — whatever it is, we are not ready; the next probe asks anew
        logger.error("not ready: %s: %s", name, error)  # noqa: TRY400 — a traceback at each probe hides the rest
        return False
    return True


@require_safe
def live(_request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """Everything it needs is there: 200, else 503. Asked anew each time, so it heals without a restart.

    What is TOLD_ONLY changes nothing but itself.
    """
    states = dict(_readiness.states())
    if SIGNS_NOTHING not in request.META:
        states["signing"] = _signing.holds()
    for name, holds in states.items():
        metrics.CHECKS.labels(name).set(holds)
    checks = {name: "ok" if holds else "failing" for name, holds in states.items()}
    if all(holds for name, holds in states.items() if name not in TOLD_ONLY):
        return JsonResponse({"status": "ok", "checks": checks})
    return JsonResponse(
        {
            "error": "temporarily_unavailable",
            "error_description": "The service is not ready. Try again shortly.",
            "status": "failing",
            "checks": checks,
        },
        status=503,
        headers={"Retry-After": str(RETRY_SECONDS)},
    )
