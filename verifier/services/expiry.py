"""What time alone ends in the verifier's tables. Nothing waits for it: readers compare with the clock."""

from datetime import datetime

from registry.services.database_time import not_ahead
from registry.services.expiry import forget
from verifier.models import AgentOperation, PresenceLease, ProviderCall
from verifier.services.confirmations import expire_confirmations
from verifier.services.state import forget_old_changes


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Write down which confirmations have ended and forget what nobody can use, by the database's clock too; how many of each."""
    now = not_ahead(now)
    return {
        "confirmations": expire_confirmations(now=now),
        "operations": forget(AgentOperation.objects.filter(expires_at__lte=now)),
        "state_changes": forget_old_changes(now=now),
        "calls": forget(ProviderCall.objects.filter(expires_at__lte=now)),
        "leases": forget(PresenceLease.objects.filter(expires_at__lte=now)),
    }
