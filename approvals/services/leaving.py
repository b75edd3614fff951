"""How a person leaves for good: what is theirs ends or is erased, what proves the past stays."""

from datetime import datetime

from django.db import transaction
from django.db.models import Q

from approvals.models import Challenge, Recovery, SetupCode
from approvals.services.credentials import remove_all_passkeys
from audit.erasure import erase_openings
from audit.services import Actor
from registry.models import Human
from registry.services import people


def delete_human(*, human: Human, actor: Actor, now: datetime, even_last_admin: bool = False) -> None:
    """Delete the human: their agents, grants, passkeys and sessions end, and whatever says who they were is erased.

    Events, receipts and the rows they refer to stay, with the human's id and nothing that names them, and prove
    as before (docs/protocol.md section 11). Raises InvalidStateError as `registry.services.people.delete_human`.
    """
    email = human.email
    with transaction.atomic():
        # First whatever still could become a passkey: who was at it is done before this ends, and nobody comes after.
        codes = SetupCode.objects.filter(Q(human=human) | Q(email__iexact=email))
        # The challenge of a setup holds the name and the address that were typed.
        setups = [str(pk) for pk in codes.values_list("pk", flat=True)]
        # First of a recovery's rows, as everywhere: a link that is being used is done before, or refused after.
        mine = Recovery.objects.filter(human=human, used_at=None, cancelled_at=None)
        mine.update(cancelled_at=now)
        Recovery.objects.filter(human=human).update(notice_due_at=None)
        setups += [str(pk) for pk in Recovery.objects.filter(human=human).values_list("pk", flat=True)]
        Challenge.objects.filter(
            Q(human=human) | Q(purpose=Challenge.Purpose.SETUP, subject__in=setups)
        ).delete()
        codes.delete()
        remove_all_passkeys(human=human, reason="human_deleted", actor=actor, now=now)
        people.delete_human(human=human, actor=actor, now=now, even_last_admin=even_last_admin)
        # Last: what was recorded above has openings too.
        erase_openings(human_id=human.pk, email=email)
