"""Who decides for whom: what administrators set, own absences, and what the job records."""

from datetime import timedelta
from typing import Any

from approvals.tests.cast import Person, registered
from audit import kinds
from registry.models import ApproverGroup, GroupMember
from registry.services import approvers
from registry.tests.cast import TESTER
from tests.acts.world import Act, World, act, task

GROUPS = "POST approvers/groups"
ONE = f"{GROUPS}/<uuid:group_id>"
AWAY = {"from": "2126-08-01T09:00", "until": "2126-08-14T18:00"}
FIELDS = {"name": "Finance", "wait": "15", "next": ""}


def _group(world: World) -> ApproverGroup:
    return approvers.create_group(
        name="Directors", wait_minutes=15, next_group=None, actor=TESTER, now=world.now
    )


def _bob(world: World) -> tuple[Person, GroupMember]:
    """A member of the group."""
    bob = registered("bob@example.org", "Bob", now=world.now)
    group = _group(world)
    return bob, approvers.add_member(group=group, human=bob.human, actor=TESTER, now=world.now)


def _rule(world: World, group: ApproverGroup, **fields: Any) -> Any:
    return approvers.create_rule(
        name="Everything", group=group, actor=TESTER, now=world.now, **fields
    )


def _absence(world: World) -> Any:
    return approvers.set_absence(
        human=world.alice.human,
        starts_at=world.now,
        ends_at=world.now + timedelta(days=1),
        actor=TESTER,
        now=world.now,
    )


@act(GROUPS, kinds.HUMAN_VERIFIED, kinds.APPROVER_GROUP_CREATED)
def an_admin_creates_a_group(world: World) -> Act:
    return world.form(world.admin, "/approvers/groups", **FIELDS)


@act(f"{ONE}/change", kinds.HUMAN_VERIFIED, kinds.APPROVER_GROUP_CHANGED)
def an_admin_changes_a_group(world: World) -> Act:
    return world.form(world.admin, f"/approvers/groups/{_group(world).pk}/change", **FIELDS)


@act(f"{ONE}/remove", kinds.APPROVER_GROUP_REMOVED)
def an_admin_removes_a_group(world: World) -> Act:
    group, admin = _group(world), world.admin
    return lambda: admin.client.post(f"/approvers/groups/{group.pk}/remove")


@act(f"{ONE}/members", kinds.HUMAN_VERIFIED, kinds.APPROVER_ADDED)
def an_admin_adds_a_member(world: World) -> Act:
    path = f"/approvers/groups/{_group(world).pk}/members"
    return world.form(world.admin, path, human=str(world.alice.human.pk))


@act("POST approvers/members/<uuid:member_id>/remove", kinds.APPROVER_REMOVED)
def an_admin_removes_a_member(world: World) -> Act:
    member, admin = _bob(world)[1], world.admin
    return lambda: admin.client.post(f"/approvers/members/{member.pk}/remove")


@act("POST approvers/rules", kinds.HUMAN_VERIFIED, kinds.APPROVAL_RULE_CREATED)
def an_admin_adds_a_rule(world: World) -> Act:
    fields = {"name": "Payments over €1,000", "amount": "1000", "currency": "EUR"}
    return world.form(world.admin, "/approvers/rules", group=str(_group(world).pk), **fields)


@act("POST approvers/rules/<uuid:rule_id>/end", kinds.HUMAN_VERIFIED, kinds.APPROVAL_RULE_ENDED)
def an_admin_ends_a_rule(world: World) -> Act:
    rule = _rule(world, _group(world))
    return world.form(world.admin, f"/approvers/rules/{rule.pk}/end")


@act(
    "POST approvers/rules/<uuid:rule_id>/before/<uuid:other_id>",
    kinds.HUMAN_VERIFIED,
    kinds.APPROVAL_RULE_MOVED,
)
def an_admin_moves_a_rule_up(world: World) -> Act:
    group = _group(world)
    first, second = _rule(world, group), _rule(world, group)
    return world.form(world.admin, f"/approvers/rules/{second.pk}/before/{first.pk}")


@act("POST approvers/absences", kinds.HUMAN_VERIFIED, kinds.ABSENCE_SET)
def an_admin_sets_an_absence_with_a_deputy(world: World) -> Act:
    deputy = str(world.admin.human.pk)
    fields = AWAY | {"human": str(world.alice.human.pk), "deputy": deputy}
    return world.form(world.admin, "/approvers/absences", **fields)


@act("POST approvers/absences/<uuid:away_id>/remove", kinds.ABSENCE_ENDED)
def an_admin_removes_an_absence(world: World) -> Act:
    absence, admin = _absence(world), world.admin
    return lambda: admin.client.post(f"/approvers/absences/{absence.pk}/remove")


@act("POST settings/absences", kinds.ABSENCE_SET)
def a_human_says_that_they_will_be_away(world: World) -> Act:
    alice = world.alice
    return lambda: alice.client.post("/settings/absences", AWAY)


@act("POST settings/absences/<uuid:absence_id>/remove", kinds.ABSENCE_ENDED)
def a_human_is_back_early(world: World) -> Act:
    absence, alice = _absence(world), world.alice
    return lambda: alice.client.post(f"/settings/absences/{absence.pk}/remove")


@act("task approvals.tell_approvers", kinds.REQUEST_ROUTED, kinds.REQUEST_PASSED_ON)
def a_request_comes_to_an_empty_group_and_is_passed_on(world: World) -> Act:
    _rule(world, _group(world))
    assert world.request
    return task("approvals.tell_approvers")


@act("POST approvals/<uuid:grant_id>/decide", kinds.GRANT_APPROVED)
def a_member_approves_for_a_colleague(world: World) -> Act:
    bob, member = _bob(world)
    _rule(world, member.group)
    options = bob.statement(world.request).json()["publicKey"]
    credential = bob.device.assertion(options)
    path = f"/approvals/{world.request.pk}/decide"
    return lambda: bob.post(path, {"credential": credential})
