"""Repeat what the lost history ended, each through the service that ended it the first time."""

import logging
from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any, Final, NamedTuple

from django.db import transaction
from django.db.models import QuerySet

from agentauth.protocol.errors import InvalidStateError, NotFoundError
from approvals.models import Passkey
from approvals.services.credentials import remove_passkey_for_good
from approvals.services.leaving import delete_human
from audit import kinds
from audit.endings import Ending
from audit.services import Actor
from kms.models import Key
from kms.services import disable_key
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agents import revoke_agent, suspend_agent
from registry.services.grants import revoke_grant
from registry.services.people import suspend_human
from registry.services.service_providers import revoke_service_provider, suspend_service_provider

logger = logging.getLogger(__name__)

REASON: Final = "restored"


class _End(NamedTuple):
    """The rows, the field that the id belongs to, and the service with the name of its argument."""

    rows: QuerySet[Any]
    field: str
    act: Callable[..., object]
    argument: str


_ENDS: Final[Mapping[str, _End]] = {
    kinds.HUMAN_DELETED: _End(
        Human.objects.all(), "pk", partial(delete_human, even_last_admin=True), "human"
    ),
    kinds.HUMAN_SUSPENDED: _End(Human.objects.all(), "pk", suspend_human, "human"),
    kinds.PASSKEY_REMOVED: _End(
        Passkey.objects.all(), "pk", partial(remove_passkey_for_good, reason=REASON), "passkey"
    ),
    kinds.AGENT_REVOKED: _End(Agent.objects.all(), "pk", revoke_agent, "agent"),
    # The record does not say whether the owner or an admin did it, so only an admin may resume it.
    kinds.AGENT_SUSPENDED: _End(Agent.objects.all(), "pk", partial(suspend_agent, by_admin=True), "agent"),
    kinds.GRANT_REVOKED: _End(Grant.objects.all(), "pk", revoke_grant, "grant"),
    kinds.SERVICE_PROVIDER_REVOKED: _End(
        ServiceProvider.objects.all(), "pk", revoke_service_provider, "service_provider"
    ),
    kinds.SERVICE_PROVIDER_SUSPENDED: _End(
        ServiceProvider.objects.all(), "pk", suspend_service_provider, "service_provider"
    ),
    kinds.KEY_DISABLED: _End(Key.objects.all(), "kid", disable_key, "kid"),
}


def end_again(ending: Ending, *, actor: Actor, now: datetime) -> bool:
    """Repeat an ending of the lost history, in the caller's transaction.

    False if it is done already, or if the record is not in this database. Raises InvalidStateError for a kind of ending that
    this version does not know, so that no ending is skipped silently.
    """
    end = _ENDS.get(ending.kind)
    if end is None:
        raise InvalidStateError(
            f"An ending of kind {ending.kind} cannot be ended again by this version: run a release that knows it."
        )
    row = end.rows.filter(**{end.field: ending.id}).first()
    if row is None:
        return False
    try:
        with transaction.atomic():
            what = ending.id if end.argument == end.field else row
            end.act(**{end.argument: what}, actor=actor, now=now)
    except (InvalidStateError, NotFoundError) as error:
        logger.warning("%s %s was not ended again: %s", ending.kind, ending.id, error.description)
        return False
    return True
