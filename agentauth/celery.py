"""The Celery app: the jobs as tasks, for operators who run Celery. Others use `manage.py jobs`."""

import logging
import os
from typing import Any

import django
from celery import Celery
from celery.apps import worker as worker_program
from celery.signals import beat_init, setup_logging, worker_init, worker_shutdown
from django.conf import settings

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")
django.setup(set_prefix=False)

from agentauth.checks import stop_if_unsafe  # noqa: E402 — all of these read models
from agentauth.job_table import JOBS, Job  # noqa: E402
from agentauth.observability import tracing  # noqa: E402
from agentauth.observability.ops_listener import listen  # noqa: E402
from agentauth.startup_checks import check_start  # noqa: E402

app = Celery("agentauth")
# All that Celery gets. It copies a whole settings module into its own configuration, secrets
# included, and shows that to any client of the broker that asks a worker.
app.config_from_object({"broker_url": settings.CELERY_BROKER_URL or None})
app.conf.update(
    task_serializer="json",
    accept_content=["json"],
    # A client of the broker could read the configuration, stop workers and slow down tasks.
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    # One thread per job, and one run of a job at a time (`Job.do`), so no job blocks another.
    worker_pool="threads",
    worker_concurrency=len(JOBS),
    # Drop a run that no worker takes before the next one is due.
    beat_schedule={
        job.name: {"task": job.name, "schedule": job.seconds, "options": {"expires": job.seconds}}
        for job in JOBS
    },
    # In memory: the image's user cannot write to the working directory, and after a restart of beat
    # a job is at most one period late.
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
    """Keep Django's logging, so that all processes log alike. `-l` sets Celery's own level."""
    logging.getLogger("celery").setLevel(min(loglevel, logging.getLogger().level))


def _with(program: Any, **ours: bool) -> Any:
    class Program(program):  # type: ignore[misc]  # celery has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options | ours)

    return Program


# No banner, and workers tell each other nothing.
app.Worker = _with(
    app.Worker,
    quiet=True,
    without_gossip=True,
    without_mingle=True,
    without_heartbeat=True,
    task_events=False,
)
app.Beat = _with(app.Beat, quiet=True)
# A worker prints this to the terminal when it is asked to stop, bypassing the log.
worker_program.safe_say = lambda *_: None
logging.captureWarnings(capture=True)


@worker_init.connect  # type: ignore[untyped-decorator]
@beat_init.connect  # type: ignore[untyped-decorator]
def _check_start(**_: object) -> None:
    """Raises SystemExit, also without a broker: Celery would look for one on this host."""
    stop_if_unsafe()
    if not app.conf.broker_url:
        raise SystemExit(
            "CELERY_BROKER_URL is not set: set it to the broker's URL, such as "
            "redis://host:port/db."
        )
    check_start()
    listen()


@worker_init.connect  # type: ignore[untyped-decorator]
def _start_traces(**_: object) -> None:
    """Its threads do the jobs; beat only asks for them."""
    tracing.start("worker")


@worker_shutdown.connect  # type: ignore[untyped-decorator]
def _stop_traces(**_: object) -> None:
    tracing.stop()
