"""An owner asks that an approved grant end later; it waits to be signed as a request does (ADR 51).

`grants.approve_grant` renews it once a person who may decide has signed.
"""

from datetime import datetime, timedelta

from django.db import transaction
from django.utils.translation import gettext as _

from agentauth.protocol.errors import InvalidStateError
from audit import kinds
from audit.services import Actor, record
from registry.models import Grant, Renewal


def renewal_refusal(grant: Grant, now: datetime) -> str:
    """Why this grant cannot be renewed now, as a sentence; empty if it can."""
    agent, service_provider = grant.agent, grant.service_provider
    status, end = grant.status_at(now), grant.valid_until
    if status != Grant.Status.APPROVED or end is None:
        return _("Only a grant that is in force can be renewed. The agent can ask for a new one.")
    if not agent.is_active_at(now):
        return _("This grant cannot be renewed, because the agent is not active.")
    if not service_provider.is_active:
        return _("This grant cannot be renewed, because the service is not active.")
    if agent.expires_at.replace(microsecond=0) <= end:
        return _(
            "This grant cannot be renewed yet: it lasts as long as the agent’s registration, which"
            " the agent must renew first."
        )
    if (now + timedelta(seconds=grant.requested_seconds)).replace(microsecond=0) <= end:
        return _("This grant already lasts as long as the agent asked for.")
    return ""


def request_renewal(*, grant: Grant, actor: Actor, now: datetime) -> bool:
    """Ask that the grant end later, for its owner; whether this is new. Raises InvalidStateError.

    One that waits already stays as it is: asking again must not delay who may decide next.
    """
    if refusal := renewal_refusal(grant, now):
        raise InvalidStateError(refusal)
    with transaction.atomic():
        # The lock that the routing job and a decision take: of two presses, the later one waits.
        held = Grant.objects.select_for_update(no_key=True).get(pk=grant.pk)
        if held.waits_for_renewal(now):
            return False
        if (held.status, held.version) != (grant.status, grant.version):
            raise InvalidStateError("This grant just changed. Look at it again.")
        Renewal.objects.update_or_create(grant=held, defaults={"asked_at": now})
        record(
            kind=kinds.GRANT_RENEWAL_REQUESTED,
            actor=actor,
            at=now,
            agent_id=grant.agent_id,
            human_id=grant.agent.human_id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.pk,
            data={"version": held.version},
        )
    return True
