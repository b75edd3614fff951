"""Erase a deleted human's texts from the registry; ids, states, times, amounts, hashes stay."""

import uuid
from collections.abc import Sequence
from typing import Final

from audit import kinds
from audit.models import Event
from registry.models import Agent, Grant, IdempotencyRecord, Token

# The claims that name what was granted.
_CLAIMED_TEXTS: Final = frozenset({"scope", "authorization_details"})
# Replaces the name of an agent.
NAMELESS: Final = "Deleted agent"


def agents_of(human_id: uuid.UUID) -> list[uuid.UUID]:
    """The ids of all agents of this human, including those that ended."""
    return list(Agent.objects.filter(human_id=human_id).order_by("id").values_list("pk", flat=True))


def erase_texts(*, human_id: uuid.UUID, agent_ids: Sequence[uuid.UUID]) -> None:
    """Blank the texts of agents, grants, tokens and stored answers, in the caller's transaction.

    The human is deleted already, so all of this has ended. Envelopes stay, and what the ledger
    counted. Digests of requests go too, because the text behind a digest can be guessed.
    """
    keys = [*map(str, agent_ids), *_keys_of(agent_ids)]
    IdempotencyRecord.objects.filter(caller__in=keys).delete()
    for token in Token.objects.filter(
        grant__agent_id__in=agent_ids, claims__has_key="scope"
    ).iterator():
        ids = {name: value for name, value in token.claims.items() if name not in _CLAIMED_TEXTS}
        Token.objects.filter(pk=token.pk).update(claims=ids)
    grants = Grant.objects.filter(agent_id__in=agent_ids)
    grants.filter(capabilities__isnull=False).exclude(capabilities=[]).update(capabilities=[])
    grants.exclude(requested_capabilities=[]).update(
        requested_capabilities=[], request_digest=b"", reason="", deny_reason=""
    )
    # As an administrator, this human may have denied other people's requests.
    Grant.objects.filter(human_id=human_id).exclude(deny_reason="").update(deny_reason="")
    Agent.objects.filter(pk__in=agent_ids).exclude(manifest="").update(
        name=NAMELESS, description="", model_origin="", manifest="", capabilities=[]
    )


def _keys_of(agent_ids: Sequence[uuid.UUID]) -> list[str]:
    """Thumbprints of the agents' present and former keys: a registration is stored by its key."""
    present = Agent.objects.filter(pk__in=agent_ids).values_list("jkt", flat=True)
    rotated = Event.objects.filter(agent_id__in=agent_ids, kind=kinds.AGENT_KEY_ROTATED)
    return [*present, *(data["old_jkt"] for data in rotated.values_list("data", flat=True))]
