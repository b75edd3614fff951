"""Switches to a new key at once, because the old one must not sign: for the log after a restore."""

from datetime import datetime

from django.db import models, transaction

from audit.services import Actor
from kms.models import Key
from kms.services import promote_due_keys, rotate_key


def switch_key(*, purpose: str, actor: Actor, now: datetime) -> Key:
    """Create a key that signs from `now` on. Signatures of the previous key stay valid.

    Not for `token`, whose verifiers must have fetched the key set before. A waiting next key was
    published by the history that may be lost, so it does not count as new. Raises
    TemporarilyUnavailableError if no key can be made, InvalidStateError if another process is
    making one, ValueError for `token`.
    """
    if purpose == Key.Purpose.TOKEN:
        raise ValueError("verifiers must have fetched a token key before it signs")
    _start(Key.objects.filter(purpose=purpose, state=Key.State.NEXT), actor, now)
    key = rotate_key(purpose=purpose, actor=actor, now=now)
    _start(Key.objects.filter(pk=key.pk, state=Key.State.NEXT), actor, now)
    key.refresh_from_db()
    return key


def _start(keys: models.QuerySet[Key], actor: Actor, now: datetime) -> None:
    with transaction.atomic():
        keys.update(active_from=now)
        promote_due_keys(now=now, actor=actor)
