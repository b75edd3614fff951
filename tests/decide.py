"""A user's decisions made through the services, for tests whose subject is the agent; no page is
opened.

`python -m tests.decide approve|deny|revoke|confirm` reads `{"id": …}`, plus `capabilities` or
`envelope` to narrow and `reason` to deny, acts on the database of its environment and prints the
result. Without an argument it reads one such object per line, with its `act`.
"""

import json
import os
import sys
from datetime import UTC, datetime
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentauth.settings")


def run_command(act: str, told: dict[str, Any]) -> dict[str, Any]:
    """Make one decision from its JSON description."""
    return decide(act=act, **told)


def decide(*, act: str, id: str, **wish: Any) -> dict[str, Any]:  # noqa: A002 — the wire's own word
    """One decision by alice, who first claims an agent that has no owner."""
    from agentauth.protocol.behavioural_envelope import parse_envelope
    from agentauth.protocol.capability import parse_capabilities
    from audit.services import Actor
    from registry.models import Grant
    from registry.services import grants
    from tests import receipts
    from verifier.models import Confirmation

    now = datetime.now(UTC)
    if act == "confirm":
        confirmation = Confirmation.objects.select_related("grant__agent__human").get(pk=id)
        human = confirmation.grant.agent.human
        assert human is not None
        actor = Actor(kind="human", id=str(human.pk))
        return {"status": receipts.confirm(confirmation, human, actor=actor, now=now).status}
    grant = Grant.objects.select_related("agent", "service_provider").get(pk=id)
    human = adopted_by(grant.agent, now)
    actor = Actor(kind="human", id=str(human.pk))
    if act == "approve":
        receipts.approve(
            grant,
            human,
            capabilities=parse_capabilities(
                wish.get("capabilities") or grant.requested_capabilities
            ),
            envelope=parse_envelope(wish.get("envelope") or grant.requested_envelope),
            actor=actor,
            now=now,
        )
    elif act == "deny":
        grants.deny_grant(
            grant=grant, human=human, reason=wish.get("reason", ""), actor=actor, now=now
        )
    else:
        grants.revoke_grant(grant=grant, actor=actor, now=now)
    return {"status": grant.status}


def adopted_by(agent: Any, now: datetime) -> Any:
    """The agent's owner; a new alice if it has none yet."""
    from audit.services import Actor
    from registry.services import agent_claims, humans

    if agent.human is None:
        actor = Actor(kind="system", id="decide")
        alice = humans.create_human(
            email=f"alice-{agent.pk}@example.org", name="Alice", actor=actor, now=now
        )
        agent_claims.claim_agent(
            agent=agent, human=alice, actor=Actor(kind="human", id=str(alice.pk)), now=now
        )
        agent.refresh_from_db()
    return agent.human


if __name__ == "__main__":
    django.setup()
    for asked in sys.stdin:
        print(
            json.dumps(decide(**{"act": "".join(sys.argv[1:2]), **json.loads(asked)})), flush=True
        )
