"""The project's own Celery app where news is due at once: `celery -A tests.faults.celery_work worker`, and what sends it work.

`python -m tests.faults.celery_work` stands for beat, and has a little work waiting all the time.
"""

import itertools
import time
from datetime import timedelta
from typing import Final

import django

django.setup()

import redis  # noqa: E402 - after the set-up
from django.conf import settings  # noqa: E402

from agentauth.celery import app as app  # noqa: E402, PLC0414 - what celery is told to serve
from audit import checkpoints  # noqa: E402
from audit.archive import archiving  # noqa: E402

checkpoints.EVERY = timedelta(0)
archiving.EVERY = timedelta(0)  # type: ignore[misc]
TASKS: Final = ("sequence_audit", "checkpoint_audit", "archive_audit")
# More would be work that nobody needs, and that the next worker begins with.
MOST_WAITING: Final = 2 * len(TASKS)


def main() -> None:
    """Ask for ever, each of the tasks in its turn."""
    broker = redis.Redis.from_url(settings.CELERY_BROKER_URL)
    for name in itertools.cycle(TASKS):
        while sum(broker.llen(queue) for queue in app.conf.task_queues) >= MOST_WAITING:
            time.sleep(0.01)
        app.send_task(f"audit.tasks.{name}")


if __name__ == "__main__":
    main()
