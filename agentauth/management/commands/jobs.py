"""`jobs`: the loop that does Celery's periodic work where there is no broker; it calls the same services."""

import contextlib
import json
import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import Error, close_old_connections, connection

from agentauth.jobs import EACH_SECOND, JOBS, Job
from agentauth.operations import listen
from agentauth.protocol.errors import ChainError, TemporarilyUnavailableError
from agentauth.startup import check_start

logger = logging.getLogger(__name__)
SECONDS = EACH_SECOND
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
        listen()
        step_back()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        # What waits for others has a thread of its own: a store, a witness or a home of keys that hangs holds up nobody's
        # second, and a segment that takes a minute no checkpoint.
        beside = [
            threading.Thread(target=self._beside, args=[stop, job], name=job.name, daemon=True)
            for job in JOBS
            if job.waits
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

    def _beside(self, stop: threading.Event, job: Job) -> None:
        pause = SECONDS
        try:
            while not stop.wait(pause):
                self.do_aside(job)
                pause = job.seconds
        finally:
            connection.close()

    def do_aside(self, job: Job) -> None:
        """Run a job that waits for other systems. Its failures must not stop the jobs that number and drain."""
        try:
            job.do()
        except Exception as error:  # noqa: BLE001 — whatever it is, it is logged and tried again
            _log_failure(job, error)

    def work(self, *, slow: bool) -> None:
        """Run the jobs that share a thread once: those of every second, and with `slow` the slow ones."""
        for job in JOBS:
            if job.waits or (job.seconds > EACH_SECOND and not slow):
                continue
            try:
                job.do()
            except (Error, TemporarilyUnavailableError, ChainError) as error:
                # The database, Redis or a store is unavailable, the log contradicts itself, or this job timed out: nothing is
                # lost, the other jobs run, and this one is retried at its next turn.
                _log_failure(job, error)


def _log_failure(job: Job, error: Exception) -> None:
    logger.error("jobs: %s failed, and will run again", job.name, exc_info=error)
    close_old_connections()
