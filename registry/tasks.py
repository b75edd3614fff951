"""Periodic work of the registry, as Celery tasks: each calls one service."""

from celery import shared_task
from django.utils import timezone

from registry.services.expiry import expire_everything


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def expire() -> dict[str, int]:
    """Record what has expired."""
    return expire_everything(now=timezone.now())
