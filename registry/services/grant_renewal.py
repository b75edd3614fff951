"""An owner asks to extend an approved grant (ADR 51).

The renewal then waits for a signature like a new request. `grants.approve_grant` extends the grant
once a person who may decide has signed.
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
    """Request an extension. Return False if one is already waiting. Raises InvalidStateError.

    A waiting renewal keeps its time: resetting it would delay its escalation to the next approver.
    """
    if refusal := renewal_refusal(grant, now):
        raise InvalidStateError(refusal)
    with transaction.atomic():
        # The routing job and a decision take this lock too. Two clicks are serialised: the second
        # finds the renewal of the first.
        locked_grant = Grant.objects.select_for_update(no_key=True).get(pk=grant.pk)
        if locked_grant.waits_for_renewal(now):
            return False
        if (locked_grant.status, locked_grant.version) != (grant.status, grant.version):
            raise InvalidStateError("This grant just changed. Look at it again.")
        Renewal.objects.update_or_create(grant=locked_grant, defaults={"asked_at": now})
        record(
            kind=kinds.GRANT_RENEWAL_REQUESTED,
            actor=actor,
            at=now,
            agent_id=grant.agent_id,
            human_id=grant.agent.human_id,
            service_provider_id=grant.service_provider_id,
            grant_id=grant.pk,
            data={"version": locked_grant.version},
        )
    return True
