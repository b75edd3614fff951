"""Items that wait for a human's decision: how many, and whether they have changed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import QuerySet

from agentauth.protocol.encoding import b64u_encode, sha256
from approvals.services.routed_requests import NOTHING, Routed
from registry.models import Agent, Grant, Human
from registry.services.agent_owners import owners_of
from verifier.services.confirmation_lifecycle import pending_for

# More are shown as "99+", so that a page's badge never costs more than this many rows.
MOST: Final = 100


@dataclass(frozen=True, slots=True)
class Waiting:
    # At most MOST.
    count: int
    # Changes whenever the newest MOST items do.
    state: str

    @property
    def shown(self) -> str:
        return f"{MOST - 1}+" if self.count >= MOST else str(self.count)


def waiting_for(human: Human, now: datetime, routed: Routed = NOTHING) -> Waiting:
    """Items that wait for this human, with the `routed` ones of others, in two queries.

    Checks the seals of the agents that ask, not of all: a person with a thousand agents would wait
    40 ms on every page. An attacker who can write rows can push items out of the newest MOST; the
    inbox checks all agents. `routed` took queries of its own (`routed_requests`).
    """
    rows = _open_rows(human, now)
    newest = list(rows[0].union(*rows[1:], all=True).order_by("-created_at", "pk")[:MOST])
    owners = owners_of({agent for _at, _pk, agent in newest})
    own = [(at, pk) for at, pk, agent in newest if owners.get(agent) == human.pk]
    others = [(each.created_at, each.pk) for each in routed.grants]
    others += [(each.created_at, each.pk) for each in routed.confirmations]
    every = sorted([*own, *others], reverse=True)[:MOST]
    found = [f"{at.timestamp()} {pk}" for at, pk in every]
    return Waiting(len(found), b64u_encode(sha256("\n".join(found).encode())))


def _open_rows(human: Human, now: datetime) -> list[QuerySet[Any, tuple[Any, ...]]]:
    """When each item was made, its id and its agent's, by what the rows say: seals not checked."""
    agents = Agent.objects.filter(human=human).values("pk")
    mine = Grant.objects.filter(agent__in=agents)
    grants = [mine.waiting(now), mine.to_sign_again(now), mine.to_renew(now)]
    return [
        *(rows.order_by().values_list("created_at", "pk", "agent_id") for rows in grants),
        pending_for(agents, now).order_by().values_list("created_at", "pk", "grant__agent_id"),
    ]
