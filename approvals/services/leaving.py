"""How a person leaves for good: what is theirs ends or is erased, what proves the past stays."""

from datetime import datetime

from django.db import transaction
from django.db.models import Q

from approvals.models import Challenge, Recovery, SetupCode
from approvals.services.credentials import remove_all_passkeys
from approvals.services.forgetting import erase_texts
from audit.services import Actor
from registry.models import Human
from registry.services import people


def delete_human(*, human: Human, actor: Actor, now: datetime, even_last_admin: bool = False) -> None:
    """Delete the human: their agents, grants, passkeys and sessions end, and whatever they or their agents wrote is erased.

    Events and rows stay with ids, states, times, amounts and hashes, and the log proves as before (docs/protocol.md section 11).
    Raises InvalidStateError as `registry.services.people.delete_human`.
    """
    email = human.email
    with transaction.atomic():
        bar_ways_in(human, now=now)
        remove_all_passkeys(human=human, reason="human_deleted", actor=actor, now=now)
        people.delete_human(human=human, actor=actor, now=now, even_last_admin=even_last_admin)
        # Last: what was recorded above has openings too.
        erase_texts(human=human, email=email, actor=actor, now=now)


def bar_ways_in(human: Human, *, now: datetime) -> None:
    """Delete whatever still could become a passkey, inside the caller's transaction and before anything else of it.

    Who was at it is done before this ends, and nobody comes after.
    """
    codes = SetupCode.objects.filter(Q(human=human) | Q(email__iexact=human.email))
    # The challenge of a setup holds the name and the address that were typed.
    setups = [str(pk) for pk in codes.values_list("pk", flat=True)]
    # First of a recovery's rows, as everywhere: a link that is being used is done before, or refused after.
    recoveries = Recovery.objects.filter(human=human)
    recoveries.filter(used_at=None, cancelled_at=None).update(cancelled_at=now)
    recoveries.update(notice_due_at=None)
    setups += [str(pk) for pk in recoveries.values_list("pk", flat=True)]
    Challenge.objects.filter(Q(human=human) | Q(purpose=Challenge.Purpose.SETUP, subject__in=setups)).delete()
    codes.delete()
