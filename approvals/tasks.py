"""Periodic work of the approvals app, as a Celery task that calls one service."""

from celery import shared_task
from django.utils import timezone

from approvals.services.expiry import expire_everything


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def expire() -> dict[str, int]:
    """Delete what has ended."""
    return expire_everything(now=timezone.now())
