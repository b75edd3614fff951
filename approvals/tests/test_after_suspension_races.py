"""A confirmation in progress while a suspension comes and goes does not survive (PostgreSQL)."""

import pytest
from django.db import transaction

from approvals.tests.cast import Person
from approvals.tests.test_after_suspension import ask_confirmation, shop
from approvals.tests.test_ending_races import Press
from audit.tests.waiting import wait_for_lock_waiters
from registry.models import Grant
from registry.services.agents import suspend_agent
from registry.tests.cast import TESTER
from verifier.models import Confirmation
from verifier.tests.scene import Scene, key

__all__ = ["shop"]

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgres]


def test_EN_11_a_yes_under_way_is_judged_before_the_suspension_is_lifted(
    shop: Scene, alice: Person, admin: Person
) -> None:
    confirmation, resume = ask_confirmation(shop, key()), f"/resume/agent/{shop.agent.pk}/"
    path, answers = f"/confirmations/{confirmation}/", list[int]()
    options = alice.press_on(path, decision="confirm").json()["publicKey"]
    said = {"credential": alice.device.assertion(options)}
    with transaction.atomic():
        Grant.objects.select_for_update(no_key=True).get(pk=shop.grant.pk)
        yes = Press(lambda: answers.append(alice.post(f"{path}decide", said).status_code))
        wait_for_lock_waiters(1)
        now = shop.grant.created_at
        Press(lambda: suspend_agent(agent=shop.agent, actor=TESTER, now=now, by_admin=True)).join()
        lifted = Press(lambda: answers.append(admin.resume(resume).status_code))
        wait_for_lock_waiters(2)
    yes.join()
    lifted.join()
    shop.agent.refresh_from_db()
    assert (sorted(answers), shop.agent.status) == ([200, 409], "active")
    assert Confirmation.objects.get(pk=confirmation).status == "pending"
