"""Periodic work of the verifier, as a Celery task that calls one service."""

from celery import shared_task
from django.utils import timezone

from verifier.services.expiry import expire_everything


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def expire() -> dict[str, int]:
    """Record what has expired."""
    return expire_everything(now=timezone.now())
