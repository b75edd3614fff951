"""Challenges: made on the server, bound to session, human, purpose and subject, used once."""

import hashlib
import hmac
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.errors import InvalidAssertionError
from approvals.models import Challenge, ChallengeQuerySet, Passkey
from approvals.passkeys import (
    CEREMONY_SECONDS,
    VerifiedAssertion,
    credential_id_of,
    new_challenge,
    request_options,
    verify_assertion,
)
from registry.models import Human
from registry.services.expiry import forget

CHALLENGE_LIFE = timedelta(seconds=CEREMONY_SECONDS)


@dataclass(frozen=True, slots=True)
class Ceremony:
    """The key under which a challenge is stored: purpose, session, human and subject.

    `session` is SHA-256 of `session_key`, as in the table.
    """

    purpose: Challenge.Purpose
    session_key: str
    human: Human | None = None
    subject: str = ""
    session: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "session", hashlib.sha256(self.session_key.encode()).digest())


def begin(
    ceremony: Ceremony,
    *,
    now: datetime,
    challenge: bytes | None = None,
    statement: Mapping[str, Any] | None = None,
    consent_text: str = "",
    data: Mapping[str, Any] | None = None,
) -> Challenge:
    """Store a new challenge in place of an unused one of the ceremony.

    `challenge` is a hash of what the human signs or confirms; by default it is random.
    """
    _rows(ceremony).filter(used_at=None).delete()
    return Challenge.objects.create(
        purpose=ceremony.purpose,
        session=ceremony.session,
        human=ceremony.human,
        subject=ceremony.subject,
        challenge=challenge or new_challenge(),
        statement=dict(statement or {}),
        consent_text=consent_text,
        data=dict(data or {}),
        created_at=now,
        expires_at=now + CHALLENGE_LIFE,
    )


def latest(ceremony: Ceremony) -> Challenge:
    """The newest challenge of the ceremony, used or not. Raises InvalidAssertionError if none."""
    row = _rows(ceremony).order_by("-created_at", "-id").first()
    if row is None:
        raise InvalidAssertionError(
            "No signature of your passkey was requested here. Press the button again."
        )
    return row


def take(row: Challenge, *, now: datetime) -> None:
    """Use up the challenge.

    Raises InvalidAssertionError if it was used before or is older than CHALLENGE_LIFE.
    """
    if not Challenge.objects.open(now).filter(pk=row.pk).update(used_at=now):
        raise InvalidAssertionError(
            "This signature request has expired or was used. Press the button again."
        )


def use_second_step(ceremony: Ceremony, digest: bytes, *, now: datetime) -> bool:
    """Use up the newest open challenge; False if there is none, or it is not of this digest.

    Raises what `take` raises.
    """
    row = _rows(ceremony).open(now).order_by("-created_at", "-id").first()
    if row is None or not hmac.compare_digest(bytes(row.challenge), digest):
        return False
    take(row, now=now)
    return True


@contextmanager
def answering(
    row: Challenge, *, now: datetime, first: Callable[[], object] = lambda: None
) -> Iterator[None]:
    """Use up the challenge and judge its answer in one transaction; a wrong answer uses it up too.

    `first` runs before the challenge is locked: an act that locks other rows locks them there.
    """
    try:
        with transaction.atomic():
            first()
            take(row, now=now)
            yield
    except InvalidAssertionError:
        spend(row, now=now)
        raise


def spend(row: Challenge, *, now: datetime) -> None:
    """End a challenge that was answered wrongly, so that a second guess needs a new one."""
    Challenge.objects.filter(pk=row.pk, used_at=None).update(used_at=now)


def void(rows: ChallengeQuerySet, *, now: datetime) -> None:
    """Use these up unanswered, in the caller's transaction.

    An answer in progress either commits first or is refused.
    """
    # In the order in which a deletion locks a human's challenges, so that the two cannot deadlock.
    held = [row.pk for row in rows.open(now).select_for_update().order_by("pk")]
    Challenge.objects.filter(pk__in=held).update(used_at=now)


def passkey_options(row: Challenge, human: Human) -> dict[str, Any]:
    """What the browser needs to ask for a signature by one of the human's passkeys."""
    allowed = Passkey.objects.filter(human=human).order_by("created_at")
    return request_options(
        rp_id=settings.RP_ID,
        challenge=bytes(row.challenge),
        allow=[bytes(passkey.credential_id) for passkey in allowed],
    )


def check_signature(
    row: Challenge, *, credential: object, human: Human | None, now: datetime
) -> tuple[Passkey, VerifiedAssertion]:
    """Verify an assertion over the challenge by a passkey of `human` (None at a sign-in: anyone's).

    Runs in the caller's transaction, so that the counter moves only together with the signed act.
    Raises InvalidAssertionError, the same for an unknown passkey, another human's, and one whose
    row has no valid seal (`kms.row_seals`).
    """
    passkeys = Passkey.objects.select_related("human").filter(
        credential_id=credential_id_of(credential)
    )
    passkey = (passkeys if human is None else passkeys.filter(human=human)).first()
    if passkey is None or not passkey.is_sealed():
        raise InvalidAssertionError("This passkey is not registered here.")
    verified = verify_assertion(
        credential=credential,
        expected_challenge=bytes(row.challenge),
        rp_id=settings.RP_ID,
        origin=settings.ORIGIN,
        public_key=bytes(passkey.public_key),
        sign_count=passkey.sign_count,
        expected_credential_id=bytes(passkey.credential_id),
        expected_user_handle=bytes(passkey.user_handle),
        expected_backup_eligible=passkey.expected_backup_eligible,
    )
    if human is None and verified.user_handle is None:
        raise InvalidAssertionError("This passkey does not name its account. Use another passkey.")
    # Compare and swap: of two signatures with one nonzero counter (a cloned authenticator), one
    # fails.
    moved = Passkey.objects.filter(pk=passkey.pk, sign_count=passkey.sign_count).update(
        sign_count=verified.sign_count,
        last_used_at=now,
        backup_eligible=verified.backup_eligible,
        backed_up=verified.backed_up,
    )
    if not moved:
        raise InvalidAssertionError(
            "This passkey was used elsewhere at the same moment. Try again."
        )
    return passkey, verified


def forget_challenges(*, now: datetime) -> int:
    """Delete challenges that expired more than a day ago. Returns how many."""
    return forget(Challenge.objects.filter(expires_at__lt=now - timedelta(days=1)))


def _rows(ceremony: Ceremony) -> ChallengeQuerySet:
    return Challenge.objects.filter(
        purpose=ceremony.purpose,
        session=ceremony.session,
        human=ceremony.human,
        subject=ceremony.subject,
    )
