"""Lock the humans of an act until it commits, and check that the one who acts still may."""

from agentauth.protocol.errors import NotFoundError
from registry.models import Human


def hold_human(human: Human, *subjects: Human) -> None:
    """Check that the human may still act, and lock them until the caller commits.

    Call it last: the lock order is passkeys, agents, grants, humans. `subjects`, the humans the act
    is about, are locked by the same statement, so that all humans are locked in one order. Raises
    NotFoundError if the human was suspended or their sessions were ended.
    """
    people = Human.objects.filter(pk__in=[each.pk for each in (human, *subjects)]).order_by("pk")
    held = {each.pk: each for each in people.select_for_update(no_key=True)}.get(human.pk)
    if held is None or not held.is_active or held.session_epoch != human.session_epoch:
        raise NotFoundError
