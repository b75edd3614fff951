"""The Celery app: the jobs as tasks, for those who run Celery anyway. Everybody else runs `manage.py jobs`."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.apps import worker as worker_program
from celery.signals import beat_init, setup_logging, worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup(set_prefix=False)

from agentauth.checks import stop_if_unsafe  # noqa: E402 — all of these read models
from agentauth.jobs import JOBS, Job  # noqa: E402
from agentauth.operations import listen  # noqa: E402
from agentauth.startup import check_start  # noqa: E402

app = Celery("agentauth")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.update(
    # A thread for each job, and each runs once at a time (`Job.do`): none holds up another, in one process for all of them.
    worker_pool="threads",
    worker_concurrency=len(JOBS),
    # A run that no worker took until the next is due is dropped.
    beat_schedule={
        job.name: {"task": job.name, "schedule": job.seconds, "options": {"expires": job.seconds}}
        for job in JOBS
    },
    # In memory: the image's user may write nowhere near, and a restart of beat makes each job wait for one period at most.
    beat_scheduler="celery.beat:Scheduler",
    task_ignore_result=True,
    broker_connection_retry_on_startup=True,
)


def _add_task(job: Job) -> None:
    def run() -> bool:
        return job.do()

    app.task(run, name=job.name)


for _job in JOBS:
    _add_task(_job)


@setup_logging.connect  # type: ignore[untyped-decorator]  # celery has no types
def keep_log_lines(loglevel: int = logging.WARNING, **_: Any) -> None:
    """Leave the log as Django set it up: its lines look like those of every other process. `-l` is heard for Celery's own."""
    logging.getLogger("celery").setLevel(min(loglevel, logging.getLogger().level))


def _without_banner(program: Any) -> Any:
    class Quiet(program):  # type: ignore[misc]  # celery has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | {"quiet": True})

    return Quiet


app.Worker, app.Beat = _without_banner(app.Worker), _without_banner(app.Beat)
# What a worker says past the log when it is told to stop.
worker_program.safe_say = lambda *_: None
logging.captureWarnings(capture=True)


@worker_init.connect  # type: ignore[untyped-decorator]
@beat_init.connect  # type: ignore[untyped-decorator]
def _check_start(**_: object) -> None:
    """Raises SystemExit, also where no broker is named: Celery would look for one on this host."""
    stop_if_unsafe()
    if not app.conf.broker_url:
        raise SystemExit("CELERY_BROKER_URL must name the broker, as redis://host:port/db.")
    check_start()
    listen()
