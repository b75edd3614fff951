"""`jobs`: the loop that does Celery's periodic work where there is no broker; it calls the same services."""

import contextlib
import json
import logging
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import Error, close_old_connections, connection
from django.utils import timezone

from agentauth.protocol.errors import ChainError, TemporarilyUnavailableError
from agentauth.startup import check_start
from approvals.services import expiry as approvals_expiry
from audit.archive.archiving import archive_due
from audit.checkpoints import checkpoint_log
from audit.cosigning import cosign_log
from audit.partitions import create_partitions
from audit.services import seal_audit
from kms.services import promote_due_keys, rotate_due_keys
from registry.services import expiry as registry_expiry
from verifier.services import draining
from verifier.services import expiry as verifier_expiry
from verifier.services.keeper import keep_home

logger = logging.getLogger(__name__)
SECONDS = 1.0
SLOW_EVERY = 30
NICENESS = 5
AUTOGROUP = Path("/proc/self/autogroup")


def step_back() -> None:
    """Its second of work waits for whoever wants an answer now, and still gets a quarter of a core that is busy."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        # Where the system shares out by session before it does by process (Linux, CONFIG_SCHED_AUTOGROUP), the line above says
        # nothing to other sessions: `serve` and service managers start each of their processes in one of its own.
        with contextlib.suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))


class Command(BaseCommand):
    help = "Drain Redis, number the log and watch the verifier's home every second; expire and promote keys every half minute."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object at the end")

    def handle(self, *args: Any, **options: Any) -> None:
        check_start()
        step_back()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        # What waits for others has a thread of its own: a store, a witness or a home of keys that hangs holds up nobody's
        # second, and a segment that takes a minute no checkpoint.
        beside = [
            threading.Thread(target=self._beside, args=[stop, job], daemon=True)
            for job in (self.sign, self.cosign, self.archive, self.rotate)
        ]
        for thread in beside:
            thread.start()
        turn, failure = 0, None
        try:
            while not stop.wait(SECONDS):
                self.work(slow=turn % SLOW_EVERY == 0)
                turn += 1
        except Exception as error:
            # Nobody foresaw it: the process ends, and its supervisor starts another.
            logger.exception("jobs: ends after an error")
            failure = error
            stop.set()
        for thread in beside:
            thread.join(SECONDS)
        if options["json"] and not failure:
            self.stdout.write(json.dumps({"turns": turn}))
        if any(thread.is_alive() for thread in beside):
            # What hangs at a store may be cut off anywhere, as by a crash; Python would wait for its helpers.
            self.stdout.flush()
            os._exit(1 if failure else 0)
        if failure:
            raise failure

    def _beside(self, stop: threading.Event, job: Callable[[], bool]) -> None:
        try:
            # What failed waits as long as the slow turns: it is said then, not each second.
            while not stop.wait(SECONDS) and (job() or not stop.wait(SLOW_EVERY * SECONDS)):
                pass
        finally:
            connection.close()

    def sign(self) -> bool:
        return self._aside(checkpoint_log)

    def cosign(self) -> bool:
        return self._aside(cosign_log)

    def archive(self) -> bool:
        return self._aside(archive_due)

    def rotate(self) -> bool:
        """Never oftener than the slow turns: it is due every few months, and making a key may take a minute."""
        self._aside(rotate_due_keys)
        return False

    def _aside(self, job: Callable[..., object]) -> bool:
        """Whether it came to its end. Nothing that a store, a witness, a home of keys or a full disk does stops those who number and drain."""
        try:
            return self._done(job)
        except Exception:
            logger.exception("jobs: %s did not come to its end", job.__name__)
            close_old_connections()
            return False

    def work(self, *, slow: bool) -> None:
        each_half_minute: list[Callable[..., object]] = [
            create_partitions,
            promote_due_keys,
            registry_expiry.expire_everything,
            verifier_expiry.expire_everything,
            approvals_expiry.expire_everything,
        ]
        for job in [keep_home, draining.drain_redis, seal_audit, *(each_half_minute if slow else ())]:
            self._done(job)

    def _done(self, job: Callable[..., object]) -> bool:
        try:
            job(now=timezone.now())
        except (Error, TemporarilyUnavailableError, ChainError):
            # The database, Redis or a store is away, the log contradicts itself, or this one job takes too long: nothing is
            # lost, the others go on, and it is tried again at its next turn.
            logger.exception("jobs: %s did not come to its end", job.__name__)
            close_old_connections()
            return False
        return True
