"""Suspending or deleting a human, or changing their role: what they began or own ends with it."""

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

from django.db import transaction
from django.db.models import Q, QuerySet

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from approvals.models import Challenge, Recovery, RecoveryQuerySet, SetupCode
from approvals.services.passkey_management import remove_all_passkeys
from approvals.services.recovery import cancel_all, taken_part_in
from approvals.services.session_management import forget_sessions_of
from approvals.services.setup_and_sign_in import end_invitations, invitations_of
from approvals.services.text_erasure import erase_texts
from audit.services import Actor
from registry.models import Human
from registry.roles import Role
from registry.services import humans, roles
from registry.services.approvers import erase_approver

# Each retry needs an act of theirs, with a passkey signature, that commits between two statements
# of one transaction.
_TRIES: Final = 5


def suspend_human(
    *, human: Human, actor: Actor, now: datetime, even_last_owner: bool = False
) -> None:
    """Suspend the human and end what they started.

    That is: sessions with what is signed in them, codes, invitations and recoveries. None of it
    goes on once they are resumed. Raises InvalidStateError as
    `registry.services.humans.suspend_human`.
    """

    def act() -> None:
        # First: recoveries are locked before humans everywhere.
        cancel_all(human=human, actor=actor, now=now)
        end_invitations(by=human, now=now)
        humans.suspend_human(human=human, actor=actor, now=now, even_last_owner=even_last_owner)

    _end_all_begun(human, act, now)


def change_role(
    *,
    human: Human,
    role: Role | None,
    by: Human | None = None,
    actor: Actor,
    now: datetime,
    even_last_owner: bool = False,
) -> None:
    """Give the human another role, or none; `by` is the owner who does it, None for an operator.

    Their sessions, their invitations and the recoveries that they began or decided end: the new
    role may not include them. So does a recovery of their own account, which was decided for an
    account with other permissions. Raises InvalidStateError as `registry.services.roles`, and for
    one's own role.
    """
    if by is not None and by.pk == human.pk:
        raise InvalidStateError("You cannot change your own role: another owner can.")

    def act() -> None:
        # First: recoveries are locked before humans everywhere.
        cancel_all(human=human, actor=actor, now=now)
        end_invitations(by=human, now=now)
        roles.change_role(
            human=human, role=role, actor=actor, now=now, even_last_owner=even_last_owner
        )

    _end_all_begun(human, act, now)


def delete_human(
    *, human: Human, actor: Actor, now: datetime, even_last_owner: bool = False
) -> None:
    """Delete the human: agents, grants, passkeys and sessions end, and all their texts are erased.

    Texts are what they or their agents wrote. Events and rows keep ids, states, times, amounts and
    hashes, and the log proves as before (docs/protocol.md section 11). Raises InvalidStateError as
    `registry.services.humans.delete_human`.
    """
    email = human.email

    def act() -> None:
        _bar_ways_in(human, actor=actor, now=now)
        remove_all_passkeys(human=human, reason="human_deleted", actor=actor, now=now)
        humans.delete_human(human=human, actor=actor, now=now, even_last_owner=even_last_owner)
        forget_sessions_of(human)
        # Their row is locked: no one can add them to a group any more.
        erase_approver(human_id=human.pk, actor=actor, now=now)
        # Last, because the events recorded above have openings too.
        erase_texts(human=human, email=email, actor=actor, now=now)

    _end_all_begun(human, act, now)


class _BegunMeanwhileError(Exception):
    """The human started something between the two steps of `act`; see `_end_all_begun`."""


def _end_all_begun(human: Human, act: Callable[[], None], now: datetime) -> None:
    """Run `act`, which ends what the human started and then locks them, in one transaction.

    An act of theirs may commit while this waits for the lock: then undo it all and retry. Locking
    the new rows after the lock on humans could deadlock. Raises TemporarilyUnavailableError after
    `_TRIES` attempts.
    """
    for _ in range(_TRIES):
        with suppress(_BegunMeanwhileError), transaction.atomic():
            act()
            if taken_part_in(human).open(now).exists() or invitations_of(human, now=now).exists():
                raise _BegunMeanwhileError
            return
        human.refresh_from_db()
    raise TemporarilyUnavailableError("This person is doing something at this moment. Try again.")


def hold_ways_in(human: Human) -> set[Any]:
    """Lock everything that could still become a passkey, before any other lock of the transaction.

    A setup or recovery in progress either commits first or is refused after the deletion that
    follows. Returns the ids of the recoveries.
    """
    recoveries, *others = _ways_in(human)
    held = {row.pk for row in recoveries.select_for_update()}
    for rows in others:
        list(rows.select_for_update().order_by("pk"))
    return held


def _bar_ways_in(human: Human, *, actor: Actor, now: datetime) -> None:
    """End the ways in, in the order `hold_ways_in` locks them.

    A setup in progress finishes first or is refused, and no new one can start.
    """
    _recoveries, challenges, codes = _ways_in(human)
    cancel_all(human=human, actor=actor, now=now)
    Recovery.objects.filter(human=human).update(notice_due_at=None)
    challenges.delete()
    codes.delete()
    end_invitations(by=human, now=now)


def _ways_in(human: Human) -> tuple[RecoveryQuerySet, QuerySet[Challenge], QuerySet[SetupCode]]:
    """What could still become a passkey, in lock order.

    Recoveries come first, as everywhere: a link in use either commits first or is refused.
    """
    recoveries = taken_part_in(human)
    codes = SetupCode.objects.filter(Q(human=human) | Q(email__iexact=human.email))
    # A setup's challenge holds the name and the address that were typed.
    setups = [str(pk) for rows in (codes, recoveries) for pk in rows.values_list("pk", flat=True)]
    mine = Q(human=human) | Q(purpose=Challenge.Purpose.SETUP, subject__in=setups)
    return recoveries, Challenge.objects.filter(mine), codes
