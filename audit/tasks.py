"""Periodic work of the audit app, for Celery; `manage.py jobs` calls the same services."""

from celery import shared_task
from django.utils import timezone

from audit.services import seal_audit


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def sequence_audit() -> int:
    return seal_audit(now=timezone.now())
