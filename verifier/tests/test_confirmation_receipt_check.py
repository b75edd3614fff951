"""A confirmation that only its row calls confirmed allows nothing: its receipt is read at use."""

import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from kms.models import Key
from registry.models import Grant, Human
from registry.services.humans import create_human
from registry.tests.cast import TESTER
from tests import receipts
from verifier.models import Confirmation
from verifier.services.confirmation_lifecycle import USABLE_LIFE
from verifier.tests.scene import PAY, Scene, assert_refused, key, pay, scene

pytestmark = pytest.mark.django_db


@pytest.fixture
def shop(db: None) -> Scene:
    return scene(PAY, confirm_above={"value": "100.00", "currency": "EUR"})


def asked(place: Scene, operation: str, amount: str = "150.00") -> Confirmation:
    answer = assert_refused(place, place.body(pay(amount), idempotency_key=operation))
    return Confirmation.objects.get(pk=answer["confirmation_id"])


def set_confirmed(row: Confirmation, **more: Any) -> None:
    """The one UPDATE that the serving role's rights allow."""
    later = timezone.now() + timedelta(days=1)
    Confirmation.objects.filter(pk=row.pk).update(
        **{
            "status": "confirmed",
            "human": row.grant.agent.human,
            "decided_at": timezone.now(),
            "usable_until": later,
        }
        | more
    )


def stays_above(place: Scene, operation: str, amount: str = "150.00") -> None:
    body = place.body(pay(amount), idempotency_key=operation)
    assert assert_refused(place, body)["reason"] == "confirm_above"


def test_DJ_17_unsigned_confirmation_lets_nothing_pass(
    shop: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    operation = key()
    row = asked(shop, operation)
    set_confirmed(row)
    with caplog.at_level(logging.ERROR):
        stays_above(shop, operation)
    assert str(row.pk) in caplog.text
    # Nor with the human's signed no, stored as a yes.
    receipt = receipts.sign_confirmation(row, shop.human, now=timezone.now(), decision="deny")
    now = timezone.now()
    receipts.store("confirmation", "confirm", str(row.pk), shop.human, receipt.compact, now)
    stays_above(shop, operation)


def _another_amount(place: Scene, row: Confirmation) -> None:
    other = asked(place, key(), "151.00")
    signed = receipts.sign_confirmation(other, place.human, now=timezone.now())
    receipts.store(
        "confirmation", "confirm", str(row.pk), place.human, signed.compact, timezone.now()
    )


def _another_person(place: Scene, row: Confirmation) -> None:
    eve = create_human(email="eve@example.org", name="Eve", actor=TESTER, now=timezone.now())
    receipts.sign_confirmation(row, eve, now=timezone.now())


def _an_old_one(place: Scene, row: Confirmation) -> None:
    then = timezone.now() - USABLE_LIFE - timedelta(minutes=5, seconds=1)
    receipts.sign_confirmation(row, place.human, now=then)


def _another_key(place: Scene, row: Confirmation) -> None:
    receipts.sign_confirmation(row, place.human, now=timezone.now())
    Key.objects.filter(purpose="receipt").update(seal=None)


SIGNED: dict[str, Callable[[Scene, Confirmation], None]] = {
    "of another amount": _another_amount,
    "by another person": _another_person,
    "long ago": _an_old_one,
    "under a key that is not ours": _another_key,
}


@pytest.mark.parametrize("which", SIGNED)
def test_DJ_17_no_other_receipt_makes_a_yes(shop: Scene, which: str) -> None:
    operation = key()
    row = asked(shop, operation)
    SIGNED[which](shop, row)
    set_confirmed(row)
    stays_above(shop, operation)


@pytest.mark.parametrize("column", ["idempotency_key", "action_digest"])
def test_DJ_17_a_signed_yes_is_not_moved_to_another_operation(shop: Scene, column: str) -> None:
    mine, other = key(), key()
    row = asked(shop, mine)
    receipts.confirm(row, shop.human, actor=TESTER, now=timezone.now())
    further = asked(shop, other, "160.00")
    Confirmation.objects.filter(pk=further.pk).delete()
    values = {"idempotency_key": other, "action_digest": further.action_digest}
    Confirmation.objects.filter(pk=row.pk).update(**{column: values[column]})
    if column == "idempotency_key":
        stays_above(shop, other)
    else:
        stays_above(shop, mine, "160.00")


def test_DJ_17_a_yes_that_ended_unused_is_none_for_the_next_question(shop: Scene) -> None:
    operation, began = key(), timezone.now()
    former = asked(shop, operation)
    receipts.confirm(former, shop.human, actor=TESTER, now=began)
    signed = receipts.sign_confirmation(former, shop.human, now=began)
    with time_machine.travel(began + USABLE_LIFE + timedelta(seconds=2)):
        answer = shop.pay("150.00", operation)
        row = Confirmation.objects.get(pk=answer["confirmation_id"])
        assert row != former
        now = timezone.now()
        receipts.store("confirmation", "confirm", str(row.pk), shop.human, signed.compact, now)
        set_confirmed(row)
        stays_above(shop, operation)


def test_DJ_17_a_yes_for_one_version_of_the_grant_is_none_for_the_next(shop: Scene) -> None:
    operation = key()
    row = asked(shop, operation)
    receipts.confirm(row, shop.human, actor=TESTER, now=timezone.now())
    Grant.objects.filter(pk=row.grant_id).update(version=2)
    Confirmation.objects.filter(pk=row.pk).update(grant_version=2)
    stays_above(shop, operation)


def test_a_yes_is_good_to_the_end_of_its_ten_minutes(shop: Scene) -> None:
    operation, began = key(), timezone.now()
    row = asked(shop, operation)
    human = Human.objects.get(pk=shop.human.pk)
    receipts.confirm(row, human, actor=TESTER, now=began)
    with time_machine.travel(began + USABLE_LIFE - timedelta(seconds=2)):
        assert shop.pay("150.00", operation)["valid"]
