"""How a person is suspended, and how they leave for good: what is theirs ends or is erased, what proves the past stays."""

from datetime import datetime

from django.db import transaction
from django.db.models import Q, QuerySet

from approvals.models import Challenge, Recovery, RecoveryQuerySet, SetupCode
from approvals.services.credentials import remove_all_passkeys
from approvals.services.forgetting import erase_texts
from approvals.services.people import end_invitations
from approvals.services.recovery import cancel_all, taken_part_in
from audit.services import Actor
from registry.models import Human
from registry.services import people


def suspend_human(*, human: Human, actor: Actor, now: datetime, even_last_admin: bool = False) -> None:
    """Suspend the human, and end what they began: sessions, with what is signed in them, codes, invitations and recoveries.

    None of it goes on once they are resumed. Raises InvalidStateError as `registry.services.people.suspend_human`.
    """
    with transaction.atomic():
        # First, as everywhere: before people.
        cancel_all(human=human, actor=actor, now=now)
        end_invitations(by=human, now=now)
        people.suspend_human(human=human, actor=actor, now=now, even_last_admin=even_last_admin)


def delete_human(*, human: Human, actor: Actor, now: datetime, even_last_admin: bool = False) -> None:
    """Delete the human: their agents, grants, passkeys and sessions end, and whatever they or their agents wrote is erased.

    Events and rows stay with ids, states, times, amounts and hashes, and the log proves as before (docs/protocol.md section 11).
    Raises InvalidStateError as `registry.services.people.delete_human`.
    """
    email = human.email
    with transaction.atomic():
        _bar_ways_in(human, actor=actor, now=now)
        remove_all_passkeys(human=human, reason="human_deleted", actor=actor, now=now)
        people.delete_human(human=human, actor=actor, now=now, even_last_admin=even_last_admin)
        # Last: what was recorded above has openings too.
        erase_texts(human=human, email=email, actor=actor, now=now)


def hold_ways_in(human: Human) -> None:
    """Lock whatever still could become a passkey, inside the caller's transaction and before anything else of it.

    Who is at it is done before this ends, or refused after a deletion that follows.
    """
    for rows in _ways_in(human):
        list(rows.select_for_update().order_by("pk"))


def _bar_ways_in(human: Human, *, actor: Actor, now: datetime) -> None:
    """End them, as `hold_ways_in` locks them: a setup under way finishes first or is refused, and no new one can start."""
    _recoveries, challenges, codes = _ways_in(human)
    cancel_all(human=human, actor=actor, now=now)
    Recovery.objects.filter(human=human).update(notice_due_at=None)
    challenges.delete()
    codes.delete()
    end_invitations(by=human, now=now)


def _ways_in(human: Human) -> tuple[RecoveryQuerySet, QuerySet[Challenge], QuerySet[SetupCode]]:
    """In the order in which they are locked.

    First of a recovery's rows, as everywhere: a link that is being used is done before, or refused after.
    """
    recoveries = taken_part_in(human)
    codes = SetupCode.objects.filter(Q(human=human) | Q(email__iexact=human.email))
    # The challenge of a setup holds the name and the address that were typed.
    setups = [str(pk) for rows in (codes, recoveries) for pk in rows.values_list("pk", flat=True)]
    mine = Q(human=human) | Q(purpose=Challenge.Purpose.SETUP, subject__in=setups)
    return recoveries, Challenge.objects.filter(mine), codes
