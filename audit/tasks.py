"""Periodic work of the audit app, for Celery; `manage.py jobs` calls the same services."""

from celery import shared_task
from django.utils import timezone

from audit.archive.archiving import archive_due
from audit.checkpoints import checkpoint_log
from audit.cosigning import cosign_log
from audit.partitions import create_partitions as make_months
from audit.services import seal_audit


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def sequence_audit() -> int:
    return seal_audit(now=timezone.now())


@shared_task(time_limit=300)  # type: ignore[untyped-decorator]  # celery has no types
def checkpoint_audit() -> int | None:
    return checkpoint_log(now=timezone.now())


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def create_partitions() -> list[str]:
    return make_months(now=timezone.now())


@shared_task(time_limit=300)  # type: ignore[untyped-decorator]  # celery has no types
def cosign_audit() -> int:
    return cosign_log(now=timezone.now())


@shared_task(time_limit=3600)  # type: ignore[untyped-decorator]  # celery has no types
def archive_audit() -> list[int] | None:
    """The range, as JSON has it."""
    archived = archive_due(now=timezone.now())
    return list(archived) if archived else None
