"""Create, change and end groups of approvers, rules and absences, with seals and events.

Acts that let more people decide take an administrator's passkey, which pages check (docs/acts.md).
"""

import uuid
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Max, Q

from agentauth.protocol.capability import TYPES
from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import InvalidRequestError, InvalidStateError
from agentauth.protocol.money import Money
from agentauth.protocol.untrusted_text import check_display_name
from audit import kinds
from audit.services import Actor, record
from registry.models import (
    Absence,
    ApprovalRule,
    ApproverGroup,
    GroupMember,
    Human,
    ServiceProvider,
)

_S = TypeVar("_S", ApproverGroup, ApprovalRule)

# A request expires after an hour, so a longer time would never elapse.
MAX_WAIT_MINUTES: Final = 59
MAX_ABSENCE: Final = timedelta(days=366)
# Absences of one person that have not ended.
MAX_ABSENCES: Final = 50


def create_group(
    *,
    name: str,
    wait_minutes: int,
    next_group: ApproverGroup | None,
    actor: Actor,
    now: datetime,
) -> ApproverGroup:
    """A group without members yet. Raises InvalidRequestError."""
    group = ApproverGroup(created_at=now)
    with transaction.atomic():
        if next_group is not None:
            _hold_group(next_group)
        _set_group(group, name, wait_minutes, next_group)
        try:
            with transaction.atomic():
                group.save(force_insert=True)
        except IntegrityError:
            raise InvalidRequestError(_taken(name)) from None
        _record_group(kinds.APPROVER_GROUP_CREATED, group, actor, now)
    return group


def change_group(
    *,
    group: ApproverGroup,
    name: str,
    wait_minutes: int,
    next_group: ApproverGroup | None,
    actor: Actor,
    now: datetime,
) -> None:
    """Change its name, its time limit and its next group. Raises InvalidRequestError."""
    with transaction.atomic():
        # Lock all groups in one order: two concurrent changes could make a cycle.
        rows = {row.pk: row for row in ApproverGroup.objects.select_for_update().order_by("pk")}
        if group.pk not in rows or (next_group is not None and next_group.pk not in rows):
            raise _gone()
        held = _require_sealed(rows[group.pk])
        _set_group(held, name, wait_minutes, next_group)
        _refuse_circle(held, rows)
        try:
            with transaction.atomic():
                held.save()
        except IntegrityError:
            raise InvalidRequestError(_taken(name)) from None
        _record_group(kinds.APPROVER_GROUP_CHANGED, held, actor, now)


def remove_group(*, group: ApproverGroup, actor: Actor, now: datetime) -> None:
    """Remove a group that no rule and no other group names. Raises InvalidStateError."""
    with transaction.atomic():
        _hold_group(group)
        # Ended rules count too: their rows stay, and their seals cover the group.
        if ApprovalRule.objects.filter(group=group).exists():
            raise InvalidStateError(
                "A rule sent requests to this group, so it cannot be removed. Remove its members."
            )
        if ApproverGroup.objects.filter(next=group).exists():
            raise InvalidStateError(
                "Another group passes requests on to this one. Change that group first."
            )
        _record_group(kinds.APPROVER_GROUP_REMOVED, group, actor, now)
        for member in GroupMember.objects.filter(group=group):
            remove_member(member=member, actor=actor, now=now)
        ApproverGroup.objects.filter(pk=group.pk).delete()


def add_member(*, group: ApproverGroup, human: Human, actor: Actor, now: datetime) -> GroupMember:
    """Let this human decide on requests that reach the group.

    Raises InvalidRequestError, InvalidStateError.
    """
    if not human.is_active:
        raise InvalidStateError("Only an active human can be a member.")
    member = GroupMember(group=group, human=human, created_at=now)
    member.set_seal()
    with transaction.atomic():
        _require_sealed(_hold_group(group))
        try:
            with transaction.atomic():
                member.save(force_insert=True)
        except IntegrityError:
            raise InvalidStateError("This human is a member already.") from None
        _record_member(kinds.APPROVER_ADDED, member, actor, now)
    return member


def remove_member(*, member: GroupMember, actor: Actor, now: datetime) -> None:
    """The human decides for this group no longer; what they decided stays."""
    with transaction.atomic():
        if GroupMember.objects.filter(pk=member.pk).delete()[0]:
            _record_member(kinds.APPROVER_REMOVED, member, actor, now)


def create_rule(
    *,
    name: str,
    group: ApproverGroup,
    service_provider: ServiceProvider | None = None,
    action_type: str = "",
    above: Money | None = None,
    before: ApprovalRule | None = None,
    actor: Actor,
    now: datetime,
) -> ApprovalRule:
    """Send requests to a group, including pending ones. The rule is tried last, or just `before`.

    Raises InvalidRequestError.
    """
    check_display_name(name)
    if action_type and action_type not in TYPES:
        raise InvalidRequestError(f"The type must be one of {', '.join(TYPES)}, or any.")
    if above is not None and action_type not in {"", "transact"}:
        raise InvalidRequestError("Only payments have an amount: choose payments, or any type.")
    with transaction.atomic():
        _require_sealed(_hold_group(group))
        rule = ApprovalRule(
            position=_make_place(before),
            name=name,
            service_provider=service_provider,
            action_type=action_type,
            above_minor=None if above is None else above.minor,
            currency="" if above is None else above.currency,
            group=group,
            created_at=now,
        )
        rule.set_seal()
        rule.save(force_insert=True)
        _record_rule(kinds.APPROVAL_RULE_CREATED, rule, actor, now)
    return rule


def move_rule(*, rule: ApprovalRule, before: ApprovalRule, actor: Actor, now: datetime) -> None:
    """Try `rule` just before `before`, which is tried just before it now.

    Which of two rules is the first to match may then be another, and so who decides. Raises
    InvalidStateError if the order is not that one, or one of the rows has no valid seal.
    """
    with transaction.atomic():
        # All, in one order: two concurrent moves could otherwise deadlock.
        rows = ApprovalRule.objects.select_for_update().order_by("pk")
        order = sorted(
            (each for each in rows if each.ended_at is None),
            key=lambda each: (each.position, each.created_at, each.pk),
        )
        places = _rising([each.position for each in order])
        ids = [each.pk for each in order]
        at = ids.index(before.pk) if before.pk in ids else -1
        if at < 0 or ids[at + 1 : at + 2] != [rule.pk]:
            raise InvalidStateError(
                "Another administrator changed the rules meanwhile. Check their order, then move "
                "the rule again."
            )
        order[at], order[at + 1] = order[at + 1], order[at]
        for each, place in zip(order, places, strict=True):
            if each.position != place:
                _require_sealed(each).position = place
                each.set_seal()
                each.save()
        _record_rule(kinds.APPROVAL_RULE_MOVED, order[at], actor, now, before=str(before.pk))


def end_rule(*, rule: ApprovalRule, actor: Actor, now: datetime) -> None:
    """Route no request by this rule any more. Raises InvalidStateError if it ended already."""
    with transaction.atomic():
        held = ApprovalRule.objects.select_for_update().get(pk=rule.pk)
        # An administrator may also end a row without a valid seal; it is then ignored.
        if held.ended_at is not None and held.is_sealed():
            raise InvalidStateError("This rule ended already.")
        held.ended_at = held.ended_at or now
        held.set_seal()
        held.save()
        _record_rule(kinds.APPROVAL_RULE_ENDED, held, actor, now)


def set_absence(
    *,
    human: Human,
    starts_at: datetime,
    ends_at: datetime,
    deputy: Human | None = None,
    actor: Actor,
    now: datetime,
) -> Absence:
    """The human decides nothing on others' requests from `starts_at` until before `ends_at`.

    A deputy decides in their place. Raises InvalidRequestError, InvalidStateError.
    """
    if not starts_at < ends_at:
        raise InvalidRequestError("The absence must end after it begins.")
    if ends_at <= now:
        raise InvalidRequestError("The absence is over already. Choose a later end.")
    if ends_at - starts_at > MAX_ABSENCE:
        raise InvalidRequestError("An absence lasts at most a year.")
    if deputy is not None and (deputy.pk == human.pk or not deputy.is_active):
        raise InvalidRequestError("The deputy must be another, active human.")
    with transaction.atomic():
        if Absence.objects.filter(human=human, ends_at__gt=now).count() >= MAX_ABSENCES:
            raise InvalidStateError(f"The limit is {MAX_ABSENCES} absences. Remove one first.")
        row = Absence(
            human=human, starts_at=starts_at, ends_at=ends_at, deputy=deputy, created_at=now
        )
        row.set_seal()
        row.save(force_insert=True)
        _record_absence(kinds.ABSENCE_SET, row, actor, now)
    return row


def end_absence(*, absence: Absence, actor: Actor, now: datetime) -> None:
    """End the absence; the deputy no longer decides for the human."""
    with transaction.atomic():
        if Absence.objects.filter(pk=absence.pk).delete()[0]:
            _record_absence(kinds.ABSENCE_ENDED, absence, actor, now)


def erase_approver(*, human_id: uuid.UUID, actor: Actor, now: datetime) -> None:
    """Remove a deleted human's memberships, absences and roles as a deputy.

    In the caller's transaction.
    """
    for member in GroupMember.objects.filter(human_id=human_id).order_by("pk"):
        remove_member(member=member, actor=actor, now=now)
    named = Absence.objects.filter(Q(human_id=human_id) | Q(deputy_id=human_id))
    for absence in named.select_for_update().order_by("pk"):
        if absence.human_id != human_id and absence.is_sealed():
            # The other person is still away.
            absence.deputy = None
            absence.set_seal()
            absence.save()
        else:
            end_absence(absence=absence, actor=actor, now=now)


def _hold_group(group: ApproverGroup) -> ApproverGroup:
    """The group, locked: what names it and what removes it wait for each other."""
    held = ApproverGroup.objects.select_for_update().filter(pk=group.pk).first()
    if held is None:
        raise _gone()
    return held


def _gone() -> InvalidRequestError:
    return InvalidRequestError("This group was removed meanwhile. Choose another.")


def _set_group(
    group: ApproverGroup, name: str, wait_minutes: int, next_group: ApproverGroup | None
) -> None:
    check_display_name(name)
    if not 1 <= wait_minutes <= MAX_WAIT_MINUTES:
        raise InvalidRequestError(
            f"The time to answer must be 1 to {MAX_WAIT_MINUTES} minutes: a request waits an hour."
        )
    if next_group is not None:
        _require_sealed(next_group)
    group.name, group.wait_minutes, group.next = name, wait_minutes, next_group
    group.set_seal()


def _refuse_circle(group: ApproverGroup, rows: dict[Any, ApproverGroup]) -> None:
    seen, at = {group.pk}, group.next_id
    while at is not None and at in rows:
        if at in seen:
            raise InvalidRequestError("These groups would pass a request on in a circle.")
        seen.add(at)
        at = rows[at].next_id


def _rising(places: list[int]) -> list[int]:
    """The places, each at least one above the last: two rules made at once may have the same."""
    found: list[int] = []
    for place in places:
        found.append(max(place, found[-1] + 1) if found else place)
    return found


def _make_place(before: ApprovalRule | None) -> int:
    """The position of a new rule. Later rules move on by one, and are sealed again."""
    if before is None:
        last = ApprovalRule.objects.aggregate(last=Max("position"))["last"]
        return 0 if last is None else last + 1
    place = ApprovalRule.objects.select_for_update().get(pk=before.pk).position
    later = ApprovalRule.objects.select_for_update().filter(position__gte=place).order_by("pk")
    for rule in [_require_sealed(each) for each in later]:
        rule.position += 1
        rule.set_seal()
        rule.save()
    return place


def _require_sealed(row: _S) -> _S:
    # Otherwise a service would seal a row that an attacker wrote.
    if not row.is_sealed():
        raise InvalidStateError(
            f"“{row}” was not written by the registry. Run `{settings.COMMAND} verify_audit`."
        )
    return row


def _taken(name: str) -> str:
    return f"There is a group “{name}” already. Choose another name."


def _record_group(kind: str, group: ApproverGroup, actor: Actor, now: datetime) -> None:
    data = {
        "group_id": str(group.pk),
        "wait_minutes": group.wait_minutes,
        "next": None if group.next_id is None else str(group.next_id),
    }
    record(kind=kind, actor=actor, at=now, data=data)


def _record_member(kind: str, member: GroupMember, actor: Actor, now: datetime) -> None:
    data = {"group_id": str(member.group_id), "member_id": str(member.pk)}
    record(kind=kind, actor=actor, at=now, human_id=member.human_id, data=data)


def _record_rule(kind: str, rule: ApprovalRule, actor: Actor, now: datetime, **more: str) -> None:
    data = {
        "rule_id": str(rule.pk),
        "group_id": str(rule.group_id),
        "position": rule.position,
        "action_type": rule.action_type,
        "above_minor": rule.above_minor,
        "currency": rule.currency,
        **more,
    }
    at = rule.service_provider_id
    record(kind=kind, actor=actor, at=now, service_provider_id=at, data=data)


def _record_absence(kind: str, row: Absence, actor: Actor, now: datetime) -> None:
    data = {
        "absence_id": str(row.pk),
        "starts_at": timestamp(row.starts_at),
        "ends_at": timestamp(row.ends_at),
        "deputy": None if row.deputy_id is None else str(row.deputy_id),
    }
    record(kind=kind, actor=actor, at=now, human_id=row.human_id, data=data)
