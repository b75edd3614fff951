"""The Celery app: periodic work in production. The embedded default runs `manage.py jobs` instead."""

import os

from celery import Celery
from celery.signals import beat_init, worker_init

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")

app = Celery("agentauth")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


def _stop_if_unsafe(**_kwargs: object) -> None:
    # Late: Celery loads this module before Django is set up.
    from agentauth.checks import stop_if_unsafe
    from agentauth.startup import check_start

    stop_if_unsafe()
    check_start()


worker_init.connect(_stop_if_unsafe)
beat_init.connect(_stop_if_unsafe)
# Seconds between two runs of each; `manage.py jobs` calls the same services.
app.conf.beat_schedule = {
    "drain": {"task": "verifier.tasks.drain", "schedule": 1.0},
    "sequence-audit": {"task": "audit.tasks.sequence_audit", "schedule": 1.0},
    "checkpoint-audit": {"task": "audit.tasks.checkpoint_audit", "schedule": 5.0},
    "create-partitions": {"task": "audit.tasks.create_partitions", "schedule": 3600.0},
    "cosign-audit": {"task": "audit.tasks.cosign_audit", "schedule": 15.0},
    "archive-audit": {"task": "audit.tasks.archive_audit", "schedule": 30.0},
    "expire": {"task": "registry.tasks.expire", "schedule": 30.0},
    "keep-home": {"task": "verifier.tasks.keep_home", "schedule": 1.0},
    "expire-verifier": {"task": "verifier.tasks.expire", "schedule": 30.0},
    "promote-keys": {"task": "kms.tasks.promote_keys", "schedule": 30.0},
    "rotate-keys": {"task": "kms.tasks.rotate_keys", "schedule": 600.0},
    "expire-approvals": {"task": "approvals.tasks.expire", "schedule": 30.0},
}
# What waits for others has a queue of its own, as it has a thread in `manage.py jobs`: no store, witness or long segment holds up
# those who number and drain. All are declared, so that a worker that is told of none takes from each.
app.conf.task_routes = {
    "audit.tasks.checkpoint_audit": {"queue": "checkpoints"},
    "audit.tasks.cosign_audit": {"queue": "witnesses"},
    "audit.tasks.archive_audit": {"queue": "archive"},
    # Making a key may take a minute, and is never urgent.
    "kms.tasks.rotate_keys": {"queue": "archive"},
}
app.conf.task_queues = {name: {} for name in ("celery", "checkpoints", "witnesses", "archive")}
# What waited for a worker until its next turn is not done twice.
for _entry in app.conf.beat_schedule.values():
    _entry["options"] = {"expires": _entry["schedule"]}
