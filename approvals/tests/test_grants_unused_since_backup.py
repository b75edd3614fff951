"""Which events of a lost log prove use (SA-13)."""

import uuid

import pytest

from approvals.services.grants_unused_since_backup import ContraryEvents
from audit import kinds
from registry.models import Agent, Grant


@pytest.mark.parametrize(
    ("kind", "with_grant", "against"),
    [
        (kinds.GRANT_REVOKED, True, ""),
        (kinds.GRANT_REVOKED, False, kinds.GRANT_REVOKED),
        (kinds.AGENT_SUSPENDED, True, kinds.AGENT_SUSPENDED),
        (kinds.AGENT_SUSPENDED, False, kinds.AGENT_SUSPENDED),
    ],
)
def test_SA_13_event_without_a_grant_counts_against_all_agent_grants(
    kind: str, with_grant: bool, against: str
) -> None:
    agent = Agent(pk=uuid.uuid4())
    found = ContraryEvents()
    found.add(kind, {"agent_id": agent.pk, "grant_id": uuid.uuid4() if with_grant else None})
    assert found.kind_of(Grant(pk=uuid.uuid4(), agent=agent)) == against
