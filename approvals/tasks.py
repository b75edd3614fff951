"""Periodic work of the approvals app, for Celery; `manage.py jobs` calls the same service."""

from celery import shared_task
from django.utils import timezone

from approvals.services.challenges import forget_challenges


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def forget() -> int:
    """Delete the challenges nobody can use any more."""
    return forget_challenges(now=timezone.now())
