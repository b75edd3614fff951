"""Which capability covers an action, and which capabilities permit no more than others."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from .argument_constraint import MAX_CONSTRAINTS
from .capability import Action, Capability, lies_under
from .fast_dataclass import per_call


@dataclass(frozen=True, slots=True)
class Violation:
    """One limit an action broke; `limit` is the constraint's operand, or money for `max_amount`."""

    argument: str
    operator: str
    limit: object

    def to_json(self) -> dict[str, object]:
        """`{"argument","operator","limit"}` as in the answer of verify."""
        return {"argument": self.argument, "operator": self.operator, "limit": self.limit}


@per_call(frozen=True, slots=True)
class Choice:
    """The capability that covers an action, or None with the stable reason and violations."""

    capability: Capability | None
    reason: Literal["no_capability", "constraint"] | None = None
    violations: tuple[Violation, ...] = ()


def _same_kind(left: Capability | Action, right: Capability) -> bool:
    return (left.type, left.namespace, left.name) == (right.type, right.namespace, right.name)


def _violations(granted: Capability, action: Action) -> tuple[Violation, ...]:
    """Every limit of `granted` that the action breaks. A missing constrained argument breaks it."""
    broken = [
        Violation(each.argument, each.operator, each.operand_json())
        for each in granted.constraints
        # No constraint allows None, so a missing argument denies.
        if not each.allows(action.arguments.get(each.argument))
    ]
    ceiling = granted.max_amount
    if ceiling is not None and (action.amount is None or not action.amount.within(ceiling)):
        broken.append(Violation("amount", "max_amount", ceiling.to_json()))
    return tuple(broken)


def choose(granted: Sequence[Capability], action: Action) -> Choice:
    """The first capability that covers `action`. Only this function allows an action (section 3).

    Capabilities are never combined. Never raises. If none covers it, the violations are those of
    the first that matches type and resource.
    """
    # Match kind and resource first: an agent must not learn limits on resources it was not granted.
    matching = [
        each
        for each in granted
        if _same_kind(action, each) and lies_under(action.resource, each.resource)
    ]
    if not matching:
        return Choice(None, "no_capability")
    for each in matching:
        if not _violations(each, action):
            return Choice(each)
    return Choice(None, "constraint", _violations(matching[0], action))


def narrows(new: Sequence[Capability], old: Sequence[Capability]) -> bool:
    """Does `old` permit everything that `new` does? Each new capability must lie under one old one.

    Never raises; reflexive and transitive; an empty `new` narrows everything. May say no to a list
    that is in fact narrower (old capabilities are never combined), never yes to a wider one.
    """
    return all(any(_narrows_one(each, wide) for wide in old) for each in new)


def _narrows_one(new: Capability, old: Capability) -> bool:
    if not _same_kind(new, old) or not lies_under(new.resource, old.resource):
        return False
    # A `transact` without a ceiling (only an allow-list entry) does not narrow one that has one.
    if old.max_amount is not None and (
        new.max_amount is None or not new.max_amount.within(old.max_amount)
    ):
        return False
    return all(any(mine.implies(kept) for mine in new.constraints) for kept in old.constraints)


def intersect(left: Capability, right: Capability) -> Capability | None:
    """What both permit: the deeper resource, the lower ceiling, every constraint.

    The result narrows both. None if they share nothing, or if one capability has no room for all
    constraints or for all values of a `not_in`.
    """
    if not _same_kind(left, right):
        return None
    for one, other in ((left, right), (right, left)):
        if _narrows_one(one, other):
            return one
    deeper = left if lies_under(left.resource, right.resource) else right
    ceilings = [each.max_amount for each in (left, right) if each.max_amount is not None]
    lower = min(ceilings, key=lambda each: each.minor, default=None)
    extra = [
        each
        for each in right.constraints
        if not any(mine.implies(each) for mine in left.constraints)
    ]
    kept = [each for each in left.constraints if not any(theirs.implies(each) for theirs in extra)]
    # The wire form has each operator of an argument once.
    merged = {(each.argument, each.operator): each for each in kept}
    for each in extra:
        mine = merged.get((each.argument, each.operator))
        common = each if mine is None else mine.merge(each)
        if common is None:
            return None
        merged[each.argument, each.operator] = common
    constraints = tuple(merged[name] for name in sorted(merged))
    both = replace(left, resource=deeper.resource, max_amount=lower, constraints=constraints)
    fits = len(constraints) <= MAX_CONSTRAINTS
    return both if fits and _narrows_one(both, left) and _narrows_one(both, right) else None
