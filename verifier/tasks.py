"""Periodic work of the verifier, as a Celery task that calls one service."""

from celery import shared_task
from django.utils import timezone

from verifier.services import keeper
from verifier.services.expiry import expire_everything


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def expire() -> dict[str, int]:
    """Record what has expired."""
    return expire_everything(now=timezone.now())


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def keep_home() -> None:
    """Watch where the verifier keeps spent proofs and rates, and move it where that is needed."""
    keeper.keep_home(now=timezone.now())
