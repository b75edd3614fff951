"""Health endpoints: the process answers; and what it needs in order to serve, each named as ok or failing."""

import logging
import threading
import time
from collections.abc import Callable
from functools import cache

from django.db import connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from audit.models import QueueEntry
from kms.services import signer

logger = logging.getLogger(__name__)

# What was found is kept this long, so that probes, however many, do not load the database.
KEPT_SECONDS = 1.0
RETRY_SECONDS = 5
# Beyond this the numbering is not behind but dead, and what we do would go unproved for too long.
MAX_WAITING_EVENTS = 100_000


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
    """There is a key to sign tokens with, and its backend opens it.

    Whether it signs at this moment is not asked: a backend that fails stops issuing, and must not stop verify as well.
    """
    signer(purpose="token", now=timezone.now())


def audit_queue() -> None:
    """Events get their numbers."""
    if QueueEntry.objects.order_by("pk")[MAX_WAITING_EVENTS : MAX_WAITING_EVENTS + 1].exists():
        raise NotReadyError("more events wait for their number than may")


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check for check in (database, migrations, token_key, audit_queue)
}


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


_readiness = Readiness()


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
def ready(_request: HttpRequest) -> JsonResponse:
    """Everything it needs is there: 200, else 503. Asked anew each time, so it heals without a restart."""
    states = _readiness.states()
    checks = {name: "ok" if holds else "failing" for name, holds in states.items()}
    if all(states.values()):
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
