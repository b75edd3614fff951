"""`jobs`: the loop that does Celery's periodic work where there is no broker; it calls the same services."""

import json
import logging
import signal
import threading
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import Error, close_old_connections
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from approvals.services import expiry as approvals_expiry
from audit.services import seal_audit
from kms.services import promote_due_keys
from registry.services import expiry as registry_expiry
from verifier.services import draining
from verifier.services import expiry as verifier_expiry
from verifier.services.keeper import keep_home

logger = logging.getLogger(__name__)
SECONDS = 1.0
SLOW_EVERY = 30


class Command(BaseCommand):
    help = "Drain Redis, number the log and watch the verifier's home every second; expire and promote keys every half minute."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object at the end")

    def handle(self, *args: Any, **options: Any) -> None:
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        turn = 0
        while not stop.wait(SECONDS):
            self.work(slow=turn % SLOW_EVERY == 0)
            turn += 1
        if options["json"]:
            self.stdout.write(json.dumps({"turns": turn}))

    def work(self, *, slow: bool) -> None:
        each_half_minute: list[Callable[..., object]] = [
            promote_due_keys,
            registry_expiry.expire_everything,
            verifier_expiry.expire_everything,
            approvals_expiry.expire_everything,
        ]
        for job in [keep_home, draining.drain_redis, seal_audit, *(each_half_minute if slow else ())]:
            try:
                job(now=timezone.now())
            except (Error, TemporarilyUnavailableError):
                # The database or Redis is away, or this one job takes it too long: nothing is lost, the others go on, and it is
                # tried again at its next turn.
                logger.exception("jobs: %s did not come to its end", job.__name__)
                close_old_connections()
