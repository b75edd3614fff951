"""Items that wait for a human's decision: how many, and whether they have changed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import QuerySet

from agentauth.protocol.encoding import b64u_encode, sha256
from approvals.services.routed_requests import NOTHING, Routed
from registry.models import Grant, Human
from registry.services.agent_owners import own_agent_ids
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

    `routed` took queries of its own (`routed_requests`).
    """
    rows = [rows.order_by().values_list("created_at", "pk") for rows in _open_rows(human, now)]
    newest = rows[0].union(*rows[1:], all=True).order_by("-created_at", "pk")[:MOST]
    others = [(each.created_at, each.pk) for each in routed.grants]
    others += [(each.created_at, each.pk) for each in routed.confirmations]
    every = sorted([*newest, *others], reverse=True)[:MOST]
    found = [f"{at.timestamp()} {pk}" for at, pk in every]
    return Waiting(len(found), b64u_encode(sha256("\n".join(found).encode())))


def _open_rows(human: Human, now: datetime) -> list[QuerySet[Any]]:
    own = own_agent_ids(human)
    mine = Grant.objects.filter(agent__in=own)
    grants = [mine.waiting(now), mine.to_sign_again(now), mine.to_renew(now)]
    return [*grants, pending_for(own, now)]
