"""`jobs`: the loop that does Celery's periodic work where there is no broker; it calls the same services."""

import logging
import signal
import threading
from typing import Any

from django.core.management.base import BaseCommand
from django.db import Error, close_old_connections
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from approvals.services import expiry as approvals_expiry
from audit.services import seal_audit
from kms.services import promote_due_keys
from registry.services import expiry as registry_expiry
from verifier.services import expiry as verifier_expiry

logger = logging.getLogger(__name__)
SECONDS = 1.0
SLOW_EVERY = 30


class Command(BaseCommand):
    help = "Sequence the audit log every second; expire and promote keys every half minute."

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        turn = 0
        while not stop.wait(SECONDS):
            try:
                self.work(slow=turn % SLOW_EVERY == 0)
            except (Error, TemporarilyUnavailableError):
                # The database is away: nothing is lost, the queue waits. Try again next second.
                logger.exception("jobs: the database did not answer")
                close_old_connections()
            turn += 1

    def work(self, *, slow: bool) -> None:
        now = timezone.now()
        seal_audit(now=now)
        if slow:
            promote_due_keys(now=now)
            registry_expiry.expire_everything(now=now)
            verifier_expiry.expire_everything(now=now)
            approvals_expiry.expire_everything(now=now)
