"""Enrolment codes: single-use, 15 minutes, made for a human, presented by a registering agent."""

import hashlib
import uuid
from datetime import UTC, datetime, timedelta

from django.db import transaction
from django.db.models import F

from agentauth.protocol.errors import InvalidEnrolmentCodeError, InvalidStateError
from audit import kinds
from audit.services import Actor, record
from kms.row_seals import WIDER_DEMAND
from registry.models import Agent, EnrolmentCode, Human
from registry.services.code_derivation import is_one_of, random_code, read_code
from registry.services.secret_key_macs import derive_macs

LIFE = timedelta(minutes=15)
MAX_FAILURES = 5
LOOKUP_CHARACTERS = 8
SECRET_CHARACTERS = 26  # 130 bits
# One text for every defect, so that a caller cannot tell which codes exist.
_REFUSED = "This enrolment code is wrong, was used or has expired. Ask for a new one."


def create_enrolment_code(
    *, human: Human, actor: Actor, now: datetime
) -> tuple[EnrolmentCode, str]:
    """A code `LOOKUP-SECRET` for one agent of this human, shown once.

    Raises InvalidStateError if the human is not active.
    """
    lookup, secret = random_code(LOOKUP_CHARACTERS), random_code(SECRET_CHARACTERS)
    expires_at = now + LIFE
    with transaction.atomic():
        # Lock the human: a suspension or recovery ends the human's codes, and must find this one.
        if not Human.objects.select_for_update(no_key=True).get(pk=human.pk).is_active:
            raise InvalidStateError("Only an active human can have an enrolment code.")
        row = EnrolmentCode.objects.create(
            human=human,
            lookup=lookup,
            digest=_digests(secret, human.pk, expires_at)[0],
            created_at=now,
            expires_at=expires_at,
        )
        record(kind=kinds.ENROLMENT_CODE_CREATED, actor=actor, at=now, human_id=human.id)
    return row, f"{lookup}-{secret}"


def find_enrolment_code(code: str, *, now: datetime) -> EnrolmentCode:
    """The usable row of this code. Raises the same InvalidEnrolmentCodeError for every defect.

    The caller counts the failure after its rollback: see `count_failure`.
    """
    lookup, secret = _parts(code)
    row = EnrolmentCode.objects.select_related("human").filter(lookup=lookup).first()
    # A missing row costs the same comparison, so that timing does not show which rows exist.
    right = _is_right(row, secret)
    if row is None or not right or not _is_usable(row, now):
        raise InvalidEnrolmentCodeError(_REFUSED)
    return row


def use_enrolment_code(row: EnrolmentCode, *, agent: Agent, now: datetime) -> None:
    """Spend the code on this agent, inside its registration.

    Raises InvalidEnrolmentCodeError if another agent was first.
    """
    # Human first, then codes: the lock order of whatever ends a human's codes.
    Human.objects.select_for_update(no_key=True).get(pk=row.human_id)
    spent = EnrolmentCode.objects.filter(
        pk=row.pk, used_at=None, failures__lt=MAX_FAILURES, expires_at__gt=now
    ).update(used_at=now, agent=agent)
    if not spent:
        raise InvalidEnrolmentCodeError(_REFUSED)


def was_used_by(code: str, *, agent: Agent) -> bool:
    """Whether the agent was enrolled with this very code, so that this is a retry."""
    lookup, secret = _parts(code)
    row = EnrolmentCode.objects.filter(lookup=lookup, agent=agent).first()
    return row is not None and _is_right(row, secret)


def count_failure(code: str, *, actor: Actor, now: datetime) -> bool:
    """Count one wrong secret against the code with this lookup; the fifth locks it.

    Commits on its own; returns whether a failure was counted, and so recorded. Call it after the
    refused registration was rolled back, else the count would be rolled back with it. A used or
    expired code needs no protection and counts nothing.
    """
    lookup, secret = _parts(code)
    with transaction.atomic():
        row = EnrolmentCode.objects.filter(lookup=lookup, used_at=None, expires_at__gt=now).first()
        if row is None or _is_right(row, secret):
            return False
        counted = EnrolmentCode.objects.filter(pk=row.pk, failures__lt=MAX_FAILURES)
        if not counted.update(failures=F("failures") + 1):
            return False
        row.refresh_from_db()
        record(
            kind=kinds.ENROLMENT_CODE_FAILED,
            actor=actor,
            at=now,
            outcome="denied",
            reason="locked" if row.failures >= MAX_FAILURES else "wrong_code",
            human_id=row.human_id,
            data={"failures": row.failures},
        )
        return True


def _parts(code: str) -> tuple[str, str]:
    read = read_code(code)
    return read[:LOOKUP_CHARACTERS], read[LOOKUP_CHARACTERS:]


def _is_right(row: EnrolmentCode | None, secret: str) -> bool:
    if row is None:
        return is_one_of(
            bytes(32), _digests(secret, uuid.UUID(int=0), datetime.min.replace(tzinfo=UTC))
        )
    return is_one_of(bytes(row.digest), _digests(secret, row.human_id, row.expires_at))


def _digests(secret: str, human_id: uuid.UUID, expires_at: datetime) -> tuple[bytes, ...]:
    """The digest to store, then others to accept.

    A MAC over the person and the end too. Otherwise an attacker who can write rows could store a
    code for another person, or give a used code that they know more time, and a registration with
    it would seal the agent as that person's. Release 4 stores and accepts the SHA-256 alone, so
    until `seal_rows` has ended the upgrade this does too.
    """
    end = expires_at.astimezone(UTC).isoformat()
    macs = derive_macs("agentauth/enrolment-code/v1", str(human_id), end, secret)
    if WIDER_DEMAND.holds():
        return macs
    return (hashlib.sha256(secret.encode()).digest(), *macs)


def _is_usable(row: EnrolmentCode, now: datetime) -> bool:
    unspent = row.used_at is None and row.failures < MAX_FAILURES
    return unspent and row.expires_at > now and row.human.is_active
