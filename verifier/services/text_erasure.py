"""Erases a deleted human's texts from the verifier's rows, but no counter, amount, id or time."""

import uuid
from collections.abc import Sequence

from verifier.models import AgentOperation, Confirmation


def erase_texts(*, agent_ids: Sequence[uuid.UUID]) -> None:
    """Delete these agents' operations and blank their confirmations, in the caller's transaction.

    Their grants have ended, so no operation is repeated any more. Answers kept for service
    providers expire after a minute by themselves (`verifier.stores.stored_answers`).
    """
    AgentOperation.objects.filter(grant__agent_id__in=agent_ids).delete()
    # Row by row: each keeps its amount, and gets a unique key to satisfy `confirmation_asked_once`.
    asked = Confirmation.objects.filter(grant__agent_id__in=agent_ids, action__has_key="resource")
    for row in asked.iterator():
        kept = {name: row.action[name] for name in ("type", "amount") if name in row.action}
        Confirmation.objects.filter(pk=row.pk).update(
            action=kept, action_digest=b"", idempotency_key=str(row.pk)
        )
