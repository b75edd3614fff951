"""Concurrent endings and changes (PostgreSQL): each sees the other's result (SA-8)."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from django.db import connection, transaction

from agentauth.protocol.errors import AgentAuthError
from approvals.services.destructive_actions import end_for_good, preview
from approvals.tests.cast import Person, registered
from approvals.tests.test_destructive_actions import replaced
from audit.services import Actor
from audit.tests.waiting import wait_for_lock_waiters
from kms.models import Key
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.tests.cast import AgentClient, approved

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def ending(
    admin: Human, kind: str, row: Agent | Human | Key, now: datetime
) -> Callable[[], object]:
    """Press the button of the current page."""
    shown = preview(kind, [row.pk], human=admin, party="administrator", now=now).shown
    actor = Actor("human", str(admin.pk))
    return lambda: end_for_good(
        kind, [row.pk], shown=shown, human=admin, party="administrator", actor=actor, now=now
    )


class Press(threading.Thread):
    """One press in its own thread; `refusal` is its error's code."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.act, self.refusal = act, ""
        self.start()

    def run(self) -> None:
        try:
            self.act()
        except AgentAuthError as error:
            self.refusal = error.code
        finally:
            connection.close()


def at_once(*acts: Callable[[], object]) -> list[str]:
    """Each waits for the rows of all people, then proceeds when it can. Returns their refusals."""
    with transaction.atomic():
        list(Human.objects.select_for_update(no_key=True).order_by("pk"))
        presses = [Press(act) for act in acts]
        wait_for_lock_waiters(len(presses))
    for press in presses:
        press.join()
    return [press.refusal for press in presses]


def test_SA_8_a_grant_that_is_approved_at_the_same_moment_stops_the_press(
    admin: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    row = agent.agent()
    with transaction.atomic():
        # As every approval begins.
        Agent.objects.select_for_update(no_key=True).get(pk=row.pk)
        press = Press(ending(admin.human, "agent", row, now))
        wait_for_lock_waiters()
        approved(agent, service_provider, now=now)
    press.join()
    assert press.refusal == "grant_changed"
    assert Agent.objects.get(pk=row.pk).status == "active"
    assert Grant.objects.get().status == "approved"


def test_SA_8_of_two_administrators_who_delete_each_other_one_stays(
    admin: Person, keys: None, now: datetime
) -> None:
    """No deadlock, in either order."""
    other = registered("other@example.org", "Other", now=now, is_staff=True).human
    acts = [ending(admin.human, "human", other, now), ending(other, "human", admin.human, now)]
    refusals = at_once(*acts)
    assert sorted(Human.objects.values_list("status", flat=True)) == ["active", "deleted"]
    # The remaining user is the last administrator; a deleted user can end no one.
    assert sorted(refusals) == ["", "invalid_state"]


def test_SA_8_two_administrators_disable_two_keys_at_once(admin: Person, now: datetime) -> None:
    other = registered("other@example.org", "Other", now=now, is_staff=True).human
    keys = [replaced("token", now), replaced("token", now + timedelta(hours=1))]
    now += timedelta(hours=1)
    acts = [
        ending(who, "key", Key.objects.get(pk=key.pk), now)
        for who, key in zip((admin.human, other), keys, strict=True)
    ]
    with transaction.atomic():
        list(Key.objects.select_for_update(no_key=True).order_by("pk"))
        presses = [Press(act) for act in acts]
        wait_for_lock_waiters(2)
    for press in presses:
        press.join()
    assert [press.refusal for press in presses] == ["", ""]
    assert set(Key.objects.filter(state="disabled")) == set(keys)
