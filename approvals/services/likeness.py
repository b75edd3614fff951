"""What a person is told about an agent's name before they sign: on the page, and in the text of the signature."""

from approvals import sentences
from registry.models import Agent, Human
from registry.services.lookalikes import likenesses


def name_warnings(agent: Agent, human: Human | None) -> list[str]:
    """One sentence for each name the agent's resembles, for this human; mostly none (docs/protocol.md section 5)."""
    return [sentences.likeness(each) for each in likenesses(agent, human)]
