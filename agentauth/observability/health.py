"""Health endpoints: liveness, and readiness with each condition as ok or failing."""

import logging
import threading
import time
from collections.abc import Callable
from functools import cache, partial

from django.conf import settings
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, JsonResponse
from django.utils import timezone
from django.views.decorators.http import require_safe

from agentauth.observability import metrics, write_check
from agentauth.observability.write_check import NotWritableError
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.startup_checks import START, missing_migrations
from audit.log.load_shedding import MAX_WAITING_EVENTS
from audit.models import QueueEntry
from kms.backends import TRIAL
from kms.services import may_sign, signer
from verifier.services import replay_cache_lease

logger = logging.getLogger(__name__)

# Results are cached this long (s), so that frequent requests do not load the database.
KEPT_SECONDS = 1.0
# `Retry-After` of a 503 (s).
RETRY_SECONDS = 5
# Time from one test signature to the next (s): long, since key backends may charge per call;
# shorter after a failure, to notice the recovery.
SIGN_INTERVAL_SECONDS, SIGN_RETRY_SECONDS = 30.0, 5.0
# The same for the test write.
WRITE_INTERVAL_SECONDS, WRITE_RETRY_SECONDS = 5.0, 2.0
# A health request waits at most this long (s) for a trial (test signature or write) it started.
WAIT_SECONDS = 0.2
# A trial that runs longer than this (s) counts as failed: the database client waits 3 s for an
# answer, a key backend's caller 2 s, and 1 s is a margin.
OVERDUE_SECONDS = 4.0
# Key in request.META, set by processes that issue no tokens (the verifier, jobs, Celery): they skip
# the check `signing`, so they need no right to use the token key.
SIGNS_NOTHING = "agentauth.signs_nothing"


class NotReadyError(Exception):
    """A condition does not hold. The text is for the log."""


def database() -> None:
    """The database answers."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


def migrations() -> None:
    """Every migration of this code has been applied."""
    _check_migrations()


@cache
def _check_migrations() -> None:
    # Only success is cached: migrations are not undone under a running process.
    if missing := missing_migrations():
        raise NotReadyError(missing)


def token_key() -> None:
    """There is a token key. `signing` tests whether it signs: verifying a token needs none."""
    if not may_sign(purpose="token", now=timezone.now()):
        raise NotReadyError(
            f"no key may sign tokens now; run `{settings.COMMAND} rotate_key token`"
        )


def audit_queue() -> None:
    """The queue of events is below its limit. Above it, revoking works: the status stays ok."""
    if QueueEntry.objects.order_by("pk")[max(0, MAX_WAITING_EVENTS - 1) :][:1].exists():
        raise NotReadyError("too many events are waiting for their number")


def clock() -> None:
    """This host's clock agrees with the database's; if not, changes and decisions get 503."""
    if off := replay_cache_lease.LEASE.clock_off(waits=False):
        raise NotReadyError(off.text)


def configuration() -> None:
    """This process may act for the installation: settings as recorded, checks at startup passed."""
    START.require()
    _not_halted(configuration.__name__)


def history() -> None:
    """The database is not behind the records outside it, or `continue_after_restore` was run."""
    _not_halted(history.__name__)


def _not_halted(check: str) -> None:
    halt = replay_cache_lease.LEASE.halt(waits=False)
    if halt is not None and halt.check == check:
        raise NotReadyError(halt.reason)


CHECKS: dict[str, Callable[[], None]] = {
    check.__name__: check
    for check in (database, migrations, configuration, history, token_key, audit_queue, clock)
}
# Reported without changing the status. Pages and most decisions work without any of them, and
# revoking without `audit_queue` or `signing`. If this process cannot write, neither can any other:
# a load balancer without backends would give a worse answer than our 503.
INFORMATIONAL_CHECKS = {"audit_queue", "signing", "writable"}


class Readiness:
    """The state of each check, refreshed when it is older than KEPT_SECONDS."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._found: dict[str, bool] = {}
        self._until = 0.0

    def states(self) -> dict[str, bool]:
        with self._lock:
            if time.monotonic() >= self._until:
                self._found = {name: _run_check(name, check) for name, check in CHECKS.items()}
                self._until = time.monotonic() + KEPT_SECONDS
            return self._found


class BackgroundProbe:
    """Try something that may hang, in its own thread: a request waits at most WAIT_SECONDS."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._lock = threading.Lock()
        self._works = False
        self._until = 0.0
        self._begun = 0.0
        self._thread: threading.Thread | None = None

    def holds(self) -> bool:
        """The last result; False before the first, and while a trial exceeds OVERDUE_SECONDS."""
        with self._lock:
            now = time.monotonic()
            running = self._thread is not None and self._thread.is_alive()
            if now >= self._until and not running:
                try:
                    act = self.prepare()
                except (TemporarilyUnavailableError, DatabaseError, InterfaceError):
                    # Already logged, or shown by a check that fails.
                    return False
                self._begun = now
                self._thread = threading.Thread(
                    target=self._try, args=(act,), name=self._name, daemon=True
                )
                self._thread.start()
                self._thread.join(WAIT_SECONDS)
            return self._works and not (running and now - self._begun > OVERDUE_SECONDS)

    def _try(self, act: Callable[[], object]) -> None:
        works = False
        try:
            act()
            works = True
        except TemporarilyUnavailableError:
            # Already logged.
            return
        except (DatabaseError, InterfaceError, NotWritableError) as error:
            logger.error("not ready: %s: %s", self._name, error)  # noqa: TRY400 — as for the checks
        finally:
            # Also after an unexpected error: the earlier result no longer holds.
            self._works = works
            self._until = time.monotonic() + self.valid_seconds(works=works)

    def prepare(self) -> Callable[[], object]:
        """The action to try, prepared in the caller's thread."""
        raise NotImplementedError

    def valid_seconds(self, *, works: bool) -> float:
        """How long a result stays valid (s)."""
        raise NotImplementedError


class Signing(BackgroundProbe):
    """Whether the token key signs."""

    def prepare(self) -> Callable[[], object]:
        return partial(signer(purpose="token", now=timezone.now()).sign, TRIAL)

    def valid_seconds(self, *, works: bool) -> float:
        return SIGN_INTERVAL_SECONDS if works else SIGN_RETRY_SECONDS


class Writing(BackgroundProbe):
    """Whether a small write is committed."""

    def prepare(self) -> Callable[[], object]:
        return write_check.try_to_write

    def valid_seconds(self, *, works: bool) -> float:
        return WRITE_INTERVAL_SECONDS if works else WRITE_RETRY_SECONDS


_readiness, _signing, _writing = Readiness(), Signing("signing"), Writing("writable")


def _run_check(name: str, check: Callable[[], None]) -> bool:
    try:
        check()
    except Exception as error:  # noqa: BLE001 — any error means not ready
        logger.error("not ready: %s: %s", name, error)  # noqa: TRY400 — it would fill the log
        return False
    return True


@require_safe
def live(_request: HttpRequest) -> JsonResponse:
    """The process answers."""
    return JsonResponse({"status": "ok"})


def run_checks(request: HttpRequest) -> dict[str, bool]:
    """Whether each check of this process holds; the gauge `agentauth_ready` shows the same.

    A check runs again when its result is older than KEPT_SECONDS (`signing` and `writable`: after
    their own intervals), so a recovery shows without a restart.
    """
    states = _readiness.states() | {"writable": _writing.holds()}
    if SIGNS_NOTHING not in request.META:
        states["signing"] = _signing.holds()
    for name, holds in states.items():
        metrics.CHECKS.labels(name).set(holds)
    return states


@require_safe
def ready(request: HttpRequest) -> JsonResponse:
    """200 if every check outside INFORMATIONAL_CHECKS passes, else 503."""
    states = run_checks(request)
    checks = {name: "ok" if holds else "failing" for name, holds in states.items()}
    if all(holds for name, holds in states.items() if name not in INFORMATIONAL_CHECKS):
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
