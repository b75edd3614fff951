"""The table of periodic jobs. `manage.py jobs` runs them in one process, Celery in workers."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Final

from django.db import Error, close_old_connections
from django.utils import timezone

from agentauth.observability import metrics
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.startup_checks import START
from approvals.notifications.delivery import send_notifications
from approvals.services import expiry
from approvals.services.recovery_alert_mail import send_notices
from approvals.services.routed_requests import tell_approvers
from audit.archive.segment_writing import archive_due
from audit.checkpoints.cosigning import cosign_log
from audit.checkpoints.signing import checkpoint_log
from audit.db.partition_creation import create_partitions
from audit.services import seal_audit
from kms.services import promote_due_keys, rotate_due_keys
from registry.services import expiry as registry_expiry
from verifier.services import decision_stream_drain, replay_cache_lease
from verifier.services import expiry as verifier_expiry
from verifier.services.periodic_rollback_check import mark_history
from verifier.services.replay_epoch_keeper import keep_home
from verifier.services.rollback_hold import holding

logger = logging.getLogger(__name__)

# Seconds between two runs of a job. Slow jobs may run late: each use of a record checks its expiry.
EACH_SECOND: Final = 1.0
SOON: Final = 5.0
SLOWLY: Final = 30.0
# A failed job that waits for other systems is retried after this long, or it would log an error
# each second.
REST_SECONDS: Final = 30.0


@dataclass(eq=False, slots=True)
class Job:
    """A periodic job: calls `run(now=…)` every `seconds`.

    A run resumes where the last one ended, in whichever process that was. `waits`: the job waits
    for a store, a witness, a mail server or a key backend, so it has its own thread. `holds`: if
    the job finds that the log contradicts what was signed, it halts all decisions until an operator
    resumes them.
    """

    run: Callable[..., object]
    seconds: float
    waits: bool = False
    holds: bool = False
    _running: threading.Lock = field(default_factory=threading.Lock)
    _rests_until: float = 0.0

    @property
    def name(self) -> str:
        """App and function, such as `audit.seal_audit`. Names the Celery task, logs and metrics."""
        return f"{self.run.__module__.partition('.')[0]}.{self.run.__name__}"

    def do(self) -> bool:
        """Run the job once and return True, or return False if it must not run now.

        It must not run while it still runs in this process, within REST_SECONDS of a failure if it
        `waits`, or while this process may not act for the installation. Raises what the job raises.
        """
        if time.monotonic() < self._rests_until or not self._running.acquire(blocking=False):
            return False
        try:
            # If the database was restored from a backup, writing would fork the log's history.
            if not may_act():
                return False
            self._run()
        except Exception:
            if self.waits:
                self._rests_until = time.monotonic() + REST_SECONDS
            raise
        finally:
            self._running.release()
        return True

    def _run(self) -> None:
        begun, outcome = time.monotonic(), "failed"
        try:
            with holding() if self.holds else nullcontext():
                self.run(now=timezone.now())
            outcome = "ok"
        finally:
            took = time.monotonic() - begun
            metrics.observe_job(job=self.name, outcome=outcome, seconds=took, ended_at=time.time())


def may_act() -> bool:
    """Whether this process may act for the installation.

    By a read of at most 5 s ago (LEASE_SECONDS). False if unknown.
    """
    try:
        START.require()
        return replay_cache_lease.LEASE.halt() is None
    except (Error, TemporarilyUnavailableError) as error:
        # No traceback: an unreachable database is not a bug.
        logger.error("jobs: skipped: this process cannot check whether it may act: %s", error)  # noqa: TRY400
        close_old_connections()
        return False


JOBS: Final = (
    Job(keep_home, EACH_SECOND),
    Job(mark_history, EACH_SECOND),
    Job(decision_stream_drain.drain_redis, EACH_SECOND),
    Job(seal_audit, EACH_SECOND),
    Job(create_partitions, SLOWLY),
    Job(promote_due_keys, SLOWLY),
    Job(registry_expiry.expire_everything, SLOWLY),
    Job(verifier_expiry.expire_everything, SLOWLY),
    Job(expiry.expire_everything, SLOWLY),
    Job(tell_approvers, SOON),
    Job(send_notices, SLOWLY, waits=True),
    Job(send_notifications, EACH_SECOND, waits=True),
    Job(checkpoint_log, EACH_SECOND, waits=True, holds=True),
    Job(cosign_log, EACH_SECOND, waits=True),
    # One segment per run: a backlog takes several runs.
    Job(archive_due, EACH_SECOND, waits=True),
    # Due every few months; creating a key may take a minute.
    Job(rotate_due_keys, SLOWLY, waits=True),
)
