"""`jobs`: runs the periodic jobs where there is no Celery broker; it calls the same services."""

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

from agentauth.job_table import EACH_SECOND, JOBS, Job
from agentauth.observability import tracing
from agentauth.observability.ops_listener import listen
from agentauth.protocol.errors import ChainError, TemporarilyUnavailableError
from agentauth.startup_checks import check_start

logger = logging.getLogger(__name__)
SECONDS = EACH_SECOND
SLOW_EVERY = 30
NICENESS = 5
AUTOGROUP = Path("/proc/self/autogroup")


def step_back() -> None:
    """Yield the CPU to processes that answer calls; on a busy core the jobs still get a quarter."""
    os.nice(NICENESS)
    if os.getsid(0) == os.getpid():
        # With CONFIG_SCHED_AUTOGROUP, Linux shares the CPU by session first, so `nice` means
        # nothing to other sessions: `serve` and service managers start each process in its own.
        with contextlib.suppress(OSError):
            AUTOGROUP.write_text(str(NICENESS))


class Command(BaseCommand):
    help = (
        "Every second: drain Redis, number the log's events, check the replay cache. Every 30 "
        "seconds: expire records, promote keys."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="print one JSON object at the end")

    def handle(self, *args: Any, **options: Any) -> None:
        check_start()
        tracing.start("jobs")
        listen()
        step_back()
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        # Jobs that wait for other systems have their own threads: a hanging store, witness or key
        # backend must not delay the other jobs, nor a one-minute archive segment a checkpoint.
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
            # Unexpected: the process ends, and its supervisor starts another.
            logger.exception("jobs: stopping after an error")
            failure = error
            stop.set()
        for thread in beside:
            thread.join(SECONDS)
        tracing.stop()
        if options["json"] and not failure:
            self.stdout.write(json.dumps({"turns": turn}))
        if any(thread.is_alive() for thread in beside):
            # A hanging job may be cut off anywhere, as by a crash. A normal exit would wait for the
            # helper threads of its libraries.
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
        """Run a job that waits for other systems. Its failures must not stop the other jobs."""
        try:
            job.do()
        except Exception as error:  # noqa: BLE001 — any failure is logged and retried
            _log_failure(job, error)

    def work(self, *, slow: bool) -> None:
        """Run the jobs that share a thread once; the slow ones only with `slow`."""
        for job in JOBS:
            if job.waits or (job.seconds > EACH_SECOND and not slow):
                continue
            try:
                job.do()
            except (Error, TemporarilyUnavailableError, ChainError) as error:
                # The database, Redis or a store is unavailable, the log contradicts itself, or this
                # job timed out: nothing is lost, the other jobs run, and this one is retried at its
                # next turn.
                _log_failure(job, error)


def _log_failure(job: Job, error: Exception) -> None:
    logger.error("jobs: %s failed and will be retried", job.name, exc_info=error)
    close_old_connections()
