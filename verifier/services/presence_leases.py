"""Presence: a human confirms it with a passkey, and a visible page keeps renewing it."""

import uuid
from datetime import datetime, timedelta

from django.contrib.sessions.models import Session
from django.db import transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from registry.models import Human
from verifier.models import PresenceLease

LEASE = timedelta(seconds=60)


def begin(*, human: Human, session_key: str, actor: Actor, now: datetime) -> PresenceLease:
    """Begin a 60 s lease for `human` in this session; the caller must have verified the passkey.

    There is one lease per human: the session that began last holds it. Raises InvalidStateError if
    the session has ended (docs/protocol.md section 3, `requires_human_online`).
    """
    with transaction.atomic():
        if not Session.objects.filter(pk=session_key, expire_date__gt=now).exists():
            raise InvalidStateError("Sign in again, then say that you are here.")
        lease, _ = PresenceLease.objects.update_or_create(
            human=human,
            defaults={
                "session_id": session_key,
                "session_epoch": human.session_epoch,
                "began_at": now,
                "expires_at": now + LEASE,
            },
        )
        record(kind=kinds.PRESENCE_BEGUN, actor=actor, at=now, human_id=human.pk)
    return lease


def renew(*, human: Human, session_key: str, now: datetime) -> datetime:
    """Extend the lease of this session to 60 s from `now`; returns its new end.

    Raises InvalidStateError if it has ended: only a passkey begins it again. A renewal records no
    event, since the human's presence does not change.
    """
    until = now + LEASE
    with transaction.atomic():
        own = PresenceLease.objects.filter(human=human, session_id=session_key)
        # Lock first: the condition below uses a join, which would read what was true before a wait
        # for another transaction that ends the lease.
        own.select_for_update().first()
        if not own.current(now).update(expires_at=until):
            raise InvalidStateError("Your presence has ended. Say again that you are here.")
    return until


def end(*, human: Human, actor: Actor, now: datetime) -> None:
    """End the lease now, whichever session holds it. No effect if there is none."""
    with transaction.atomic():
        running = PresenceLease.objects.filter(human=human, expires_at__gt=now)
        # Expire the lease instead of deleting it, so that a concurrent renewal finds no
        # current one. Use `began_at`, since a waiting call is judged by the time it began,
        # which may be before `now`.
        if running.update(expires_at=F("began_at")):
            record(kind=kinds.PRESENCE_ENDED, actor=actor, at=now, human_id=human.pk)


def session_of(human_id: uuid.UUID, now: datetime) -> str | None:
    """The session that holds this human's current lease at `now`; None if there is none."""
    current = PresenceLease.objects.current(now).filter(human_id=human_id)
    return current.values_list("session_id", flat=True).first()


def is_online(human_id: uuid.UUID, now: datetime) -> bool:
    """Whether this human has a current lease at `now`. Never cached."""
    return PresenceLease.objects.current(now).filter(human_id=human_id).exists()
