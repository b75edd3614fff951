"""Periodic work of the kms app, for Celery; `manage.py jobs` calls the same services."""

from celery import shared_task
from django.utils import timezone

from kms.services import promote_due_keys, rotate_due_keys


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def promote_keys() -> int:
    return promote_due_keys(now=timezone.now())


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def rotate_keys() -> int:
    return rotate_due_keys(now=timezone.now())
