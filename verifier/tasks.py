"""Periodic work of the verifier, as Celery tasks that each call one service."""

from celery import shared_task
from django.utils import timezone

from verifier.services import keeper
from verifier.services.draining import drain_redis
from verifier.services.expiry import expire_everything


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def expire() -> dict[str, int]:
    """Record what has expired."""
    return expire_everything(now=timezone.now())


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def keep_home() -> None:
    """Watch where the verifier keeps spent proofs and rates, and move it where that is needed."""
    keeper.keep_home(now=timezone.now())


@shared_task  # type: ignore[untyped-decorator]  # celery has no types
def drain() -> int:
    """Take over what waits in Redis."""
    return drain_redis(now=timezone.now())
