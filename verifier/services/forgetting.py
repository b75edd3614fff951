"""What the verifier's rows hold of a deleted person's words goes; counters, amounts, ids and times stay."""

import uuid
from collections.abc import Sequence

from verifier.models import AgentOperation, Confirmation


def erase_texts(*, agent_ids: Sequence[uuid.UUID]) -> None:
    """Forget the operations of these agents and blank what their confirmations were about, inside the caller's transaction.

    Their grants have ended, so no operation is repeated any more. Answers to service providers' calls end by themselves after
    a minute (`verifier.stores.redelivery`).
    """
    AgentOperation.objects.filter(grant__agent_id__in=agent_ids).delete()
    # One by one: each keeps its amount, and a key of its own, since the question may not be asked twice.
    asked = Confirmation.objects.filter(grant__agent_id__in=agent_ids, action__has_key="resource")
    for row in asked.iterator():
        kept = {name: row.action[name] for name in ("type", "amount") if name in row.action}
        Confirmation.objects.filter(pk=row.pk).update(
            action=kept, action_digest=b"", idempotency_key=str(row.pk)
        )
