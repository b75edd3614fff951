"""Repeat what the lost history ended, each through the service that ended it the first time."""

import logging
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from functools import partial
from typing import Any, Final, Protocol

from django.core.exceptions import ValidationError
from django.db import transaction
from django.db.models import QuerySet

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.models import Passkey
from approvals.services.human_suspension_and_erasure import (
    change_role,
    delete_human,
    suspend_human,
)
from approvals.services.passkey_management import remove_passkey_for_good
from audit import kinds
from audit.checkpoints.endings_in_store import Ending
from audit.services import Actor
from kms.process_key_certificates import revoke_certificate
from kms.services import disable_key
from registry.models import (
    Absence,
    Agent,
    Grant,
    GroupMember,
    Human,
    ServiceProvider,
    ServiceProviderSecret,
)
from registry.services.agent_key_rotation import ROTATED
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.approvers import end_absence, remove_member
from registry.services.barred_keys import DISCLOSED, bar_key
from registry.services.grants import revoke_grant, suspend_grant
from registry.services.service_providers import (
    end_secret,
    revoke_service_provider,
    suspend_service_provider,
)

logger = logging.getLogger(__name__)

REASON: Final = "restored"
# RFC 7638: SHA-256 in base64url.
_THUMBPRINT: Final = re.compile(r"[A-Za-z0-9_-]{43}")


class _End(Protocol):
    def __call__(self, name: str, *, actor: Actor, now: datetime) -> bool: ...


def _row(rows: QuerySet[Any], argument: str, act: Callable[..., object]) -> _End:
    """End the row with this id; False if this database does not have it."""

    def end(name: str, *, actor: Actor, now: datetime) -> bool:
        try:
            row = rows.filter(pk=name).first()
        except (ValueError, ValidationError):
            # Not a valid id, so there is no such row.
            return False
        if row is not None:
            act(**{argument: row}, actor=actor, now=now)
        return row is not None

    return end


def _name(argument: str, act: Callable[..., object]) -> _End:
    """End what has this name."""

    def end(name: str, *, actor: Actor, now: datetime) -> bool:
        act(**{argument: name}, actor=actor, now=now)
        return True

    return end


def _key(reason: str) -> _End:
    """Bar an agent's key, even if no agent here has it.

    An agent that has it cannot act without it, so it is revoked.
    """

    def end(name: str, *, actor: Actor, now: datetime) -> bool:
        is_thumbprint = _THUMBPRINT.fullmatch(name) is not None
        return is_thumbprint and bar_key(jkt=name, reason=reason, actor=actor, now=now)

    return end


def _suspend_for_both(*, agent: Agent, actor: Actor, now: datetime) -> None:
    """Suspend for the owner and for an admin: the record does not say who did it.

    So both must resume it. Raises InvalidStateError.
    """
    done = False
    for by_admin in (True, False):
        with suppress(InvalidStateError):
            suspend_agent(agent=agent, actor=actor, now=now, by_admin=by_admin)
            done = True
    if not done:
        raise InvalidStateError("This agent is suspended already, or has ended.")


_secret = _row(ServiceProviderSecret.objects.all(), "secret", end_secret)
ENDS: Final[Mapping[str, _End]] = {
    kinds.HUMAN_DELETED: _row(
        Human.objects.all(), "human", partial(delete_human, even_last_owner=True)
    ),
    kinds.HUMAN_SUSPENDED: _row(
        Human.objects.all(), "human", partial(suspend_human, even_last_owner=True)
    ),
    # The record does not say which role they had since: an owner gives it again.
    kinds.HUMAN_ROLE_CHANGED: _row(
        Human.objects.all(), "human", partial(change_role, role=None, even_last_owner=True)
    ),
    kinds.PASSKEY_REMOVED: _row(
        Passkey.objects.all(), "passkey", partial(remove_passkey_for_good, reason=REASON)
    ),
    kinds.AGENT_REVOKED: _row(Agent.objects.all(), "agent", revoke_agent),
    kinds.AGENT_SUSPENDED: _row(Agent.objects.all(), "agent", _suspend_for_both),
    kinds.AGENT_KEY_BARRED: _key(DISCLOSED),
    kinds.AGENT_KEY_ROTATED: _key(ROTATED),
    kinds.GRANT_REVOKED: _row(Grant.objects.all(), "grant", revoke_grant),
    kinds.GRANT_SUSPENDED: _row(
        Grant.objects.all(), "grant", partial(suspend_grant, by_admin=True)
    ),
    kinds.APPROVER_REMOVED: _row(GroupMember.objects.all(), "member", remove_member),
    kinds.ABSENCE_ENDED: _row(Absence.objects.all(), "absence", end_absence),
    kinds.SERVICE_PROVIDER_REVOKED: _row(
        ServiceProvider.objects.all(), "service_provider", revoke_service_provider
    ),
    kinds.SERVICE_PROVIDER_SUSPENDED: _row(
        ServiceProvider.objects.all(), "service_provider", suspend_service_provider
    ),
    kinds.SERVICE_PROVIDER_SECRET_ROTATED: _secret,
    kinds.SERVICE_PROVIDER_SECRETS_ENDED: _secret,
    kinds.KEY_DISABLED: _name("kid", partial(disable_key, even_last=True)),
    kinds.KEY_CERTIFICATE_REVOKED: _name("serial", revoke_certificate),
}


def end_again(ending: Ending, *, actor: Actor, now: datetime) -> bool:
    """Repeat an ending of the lost history, in the caller's transaction.

    False if it is done already, or if this database does not have what ended. Raises
    InvalidStateError for a kind of ending that this version does not know, so that no ending is
    skipped silently.
    """
    end = ENDS.get(ending.kind)
    if end is None:
        raise InvalidStateError(
            f"An ending of kind {ending.kind} cannot be ended again by this version: run a "
            "release that knows it."
        )
    try:
        with transaction.atomic():
            return end(ending.id, actor=actor, now=now)
    except NotFoundError:
        return False
    except InvalidStateError as error:
        logger.warning("%s %s was not ended again: %s", ending.kind, ending.id, error.description)
        return False
