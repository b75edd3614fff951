"""Rows of approvers written into the database, for tests/test_sealed_rows.py: none lets decide."""

from typing import Any

from approvals.tests.cast import PAY, registered
from registry.models import Absence, ApprovalRule, ApproverGroup, Grant, GroupMember, Human
from registry.services.decision_routing import route_now
from registry.services.service_providers import change_allowed
from registry.tests.cast import TESTER, pending
from registry.tests.written_rows import inserted


def decides(world: Any) -> set[str]:
    """Who may decide on a payment of €2,000 by Alice's agent."""
    [grant] = Grant.objects.filter(agent=world.agent.agent()) or [_large(world)]
    found = route_now(grant, world.now).deciders
    return {str(Human.objects.get(pk=pk).name) for pk in found}


def _large(world: Any) -> Grant:
    change_allowed(
        service_provider=world.provider,
        allowed=["transact:payments"],
        actor=TESTER,
        now=world.now,
    )
    grant = pending(world.agent, world.provider, now=world.now, capabilities=[PAY])
    large = [PAY | {"max_amount": {"value": "2000.00", "currency": "EUR"}}]
    Grant.objects.filter(pk=grant.pk).update(requested_capabilities=large)
    return Grant.objects.select_related("agent__human", "service_provider").get(pk=grant.pk)


def an_approver(world: Any) -> None:
    """A member, a deputy and a group of the attacker's own: none of them decides."""
    assert decides(world) == {"Bob"}
    eve = registered("eve@example.org", "Eve", now=world.now)
    inserted(world.rows[GroupMember], human_id=eve.human.pk)
    assert decides(world) == {"Bob"}
    inserted(world.rows[Absence], human_id=world.bob.human.pk, deputy_id=eve.human.pk)
    assert decides(world) == {"Bob"}
    GroupMember.objects.exclude(pk=world.rows[GroupMember].pk).delete()
    GroupMember.objects.filter(pk=world.rows[GroupMember].pk).update(human_id=eve.human.pk)
    assert decides(world) == {"Ada Admin"}


def a_group(world: Any) -> None:
    """A group that passes on at once to the attacker's: it counts as empty, so administrators."""
    assert decides(world) == {"Bob"}
    ApproverGroup.objects.filter(pk=world.group.pk).update(wait_minutes=0)
    assert decides(world) == {"Ada Admin"}


def a_rule(world: Any) -> None:
    """A rule of the attacker's, or one that is taken away: the administrators decide."""
    assert decides(world) == {"Bob"}
    inserted(world.rule, position=0, group_id=ApproverGroup.objects.get(name="Directors").pk)
    assert decides(world) == {"Ada Admin"}
    ApprovalRule.objects.exclude(pk=world.rule.pk).delete()
    ApprovalRule.objects.filter(pk=world.rule.pk).update(ended_at=world.now)
    assert decides(world) == {"Ada Admin"}
