"""Cleans up expired rows of the verifier's tables. Readers check the time themselves."""

from datetime import datetime

from registry.services.database_time import not_ahead
from registry.services.expiry import forget
from verifier.models import AgentOperation, PresenceLease, ProviderCall
from verifier.services.confirmation_lifecycle import expire_confirmations
from verifier.services.state_change_feed import forget_old_changes


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Mark expired confirmations and delete rows past their use; returns how many of each.

    A row must be expired by the database's clock as well, in case this host's is ahead.
    """
    now = not_ahead(now)
    return {
        "confirmations": expire_confirmations(now=now),
        "operations": forget(AgentOperation.objects.filter(expires_at__lte=now)),
        "state_changes": forget_old_changes(now=now),
        "calls": forget(ProviderCall.objects.filter(expires_at__lte=now)),
        "leases": forget(PresenceLease.objects.filter(expires_at__lte=now)),
    }
