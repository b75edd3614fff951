"""What time alone ends in the verifier's tables. Nothing waits for it: readers compare with the clock."""

from datetime import datetime

from verifier.models import AgentOperation, PresenceLease, ProviderCall
from verifier.services.confirmations import expire_confirmations
from verifier.services.state import forget_old_changes

BATCH = 1000


def expire_everything(*, now: datetime) -> dict[str, int]:
    """Write down which confirmations have ended and forget what nobody can use; returns how many of each."""
    over = AgentOperation.objects.filter(expires_at__lte=now).values_list("pk", flat=True)[:BATCH]
    kept = ProviderCall.objects.filter(expires_at__lte=now).values_list("pk", flat=True)[:BATCH]
    return {
        "confirmations": expire_confirmations(now=now),
        "operations": AgentOperation.objects.filter(pk__in=list(over)).delete()[0],
        "state_changes": forget_old_changes(now=now),
        "calls": ProviderCall.objects.filter(pk__in=list(kept)).delete()[0],
        "leases": PresenceLease.objects.filter(expires_at__lte=now).delete()[0],
    }
