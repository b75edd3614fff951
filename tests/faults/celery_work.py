"""The project's Celery app with shorter intervals: `celery -A tests.faults.celery_work worker`.

`python -m tests.faults.celery_work` takes the place of beat, and keeps a little work queued at all
times.
"""

import itertools
import time
from datetime import timedelta
from typing import Final

import redis
from django.conf import settings

from agentauth.celery import app as app  # noqa: PLC0414 - what celery is told to serve; it sets Django up
from audit.archive import segment_writing
from audit.checkpoints import signing

signing.EVERY = timedelta(0)
segment_writing.EVERY = timedelta(0)  # type: ignore[misc]
TASKS: Final = ("audit.seal_audit", "audit.checkpoint_log", "audit.archive_due")
# More would only be a backlog that the next worker starts with.
MOST_WAITING: Final = 2 * len(TASKS)


def main() -> None:
    """Queue each of the tasks in turn, forever."""
    broker = redis.Redis.from_url(settings.CELERY_BROKER_URL)
    for name in itertools.cycle(TASKS):
        while broker.llen(app.conf.task_default_queue) >= MOST_WAITING:
            time.sleep(0.01)
        app.send_task(name)


if __name__ == "__main__":
    main()
