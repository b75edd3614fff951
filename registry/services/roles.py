"""Roles of administrators: checked before an act, given, changed and taken (ADR 50)."""

from datetime import datetime
from typing import Final

from django.db import transaction
from django.db.models import F
from django.utils.translation import gettext_noop

from agentauth.protocol.errors import InvalidStateError, NotFoundError, PermissionDeniedError
from audit import kinds
from audit.services import Actor, record
from kms.state_change_publisher import Subject, publish_change
from registry.models import Human
from registry.roles import Permission, Role
from registry.services.humans import lock_with_owners

CHANGED_MEANWHILE: Final = gettext_noop(
    "Another administrator changed this role meanwhile. Open the page again."
)


def check_permission(human: Human, permission: Permission) -> None:
    """Check that this human's role includes the permission.

    Raises PermissionDeniedError; NotFoundError for a person without a role, for whom the page or
    act does not exist.
    """
    if permission in human.permissions:
        return
    if human.role is None:
        raise NotFoundError
    raise PermissionDeniedError(
        "Your role in this registry does not allow this. Ask an owner of the registry."
    )


def check_may_stop(human: Human, subject: Human) -> None:
    """Check that `human` may suspend or sign out `subject`: an administrator, only an owner.

    Raises PermissionDeniedError.
    """
    if subject.named_role is not None and Permission.OWN not in human.permissions:
        raise PermissionDeniedError(
            "Only an owner of the registry can suspend or sign out an administrator."
        )


def change_role(
    *,
    human: Human,
    role: Role | None,
    actor: Actor,
    now: datetime,
    even_last_owner: bool = False,
) -> None:
    """Give the human this role, or none; end their sessions, so that it counts at once.

    What they began under the former role, the caller ends. Raises InvalidStateError if they have
    the role already, are deleted, or are the last owner who can sign in, or if their role changed
    since the caller read `human`.
    """
    with transaction.atomic():
        held = lock_with_owners(human, "given another role", even_last_owner=even_last_owner)
        before = held.role
        if held.status == Human.Status.DELETED:
            raise InvalidStateError("This human is deleted.")
        if held.named_role != human.named_role:
            raise InvalidStateError(CHANGED_MEANWHILE)
        if held.named_role == role:
            raise InvalidStateError("This human has this role already.")
        held.set_role(role)
        Human.objects.filter(pk=held.pk).update(
            is_staff=held.is_staff,
            admin_role=held.admin_role,
            seal=held.seal,
            session_epoch=F("session_epoch") + 1,
        )
        publish_change(Subject.HUMAN, held.pk, now=now)
        data = {"role": role and str(role), "before": before and str(before)}
        record(kind=kinds.HUMAN_ROLE_CHANGED, actor=actor, at=now, human_id=held.pk, data=data)
    human.refresh_from_db()
