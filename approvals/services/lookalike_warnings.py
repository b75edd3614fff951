"""Warnings about an agent's name before a human signs: on the page and in the signed text."""

from approvals import sentences
from registry.models import Agent, Human
from registry.services.lookalikes import likenesses


def name_warnings(agent: Agent, human: Human | None) -> list[str]:
    """One sentence per name the agent's resembles; usually none (docs/protocol.md section 5)."""
    return [sentences.likeness(each) for each in likenesses(agent, human)]
