"""The last key that can sign for a purpose cannot be disabled, not even by a race (SA-8)."""

import threading
from datetime import UTC, datetime

import pytest
from django.db import connection, transaction

from agentauth.protocol.errors import InvalidStateError
from audit.models import Event
from audit.services import Actor
from audit.tests.waiting import wait_for_lock_waiters
from kms.lifetimes import PUBLISHED_BEFORE_USE
from kms.models import Key
from kms.services import disable_key, may_sign, rotate_key, signer

pytestmark = pytest.mark.django_db
NOW = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
SWITCH = NOW + PUBLISHED_BEFORE_USE
ACTOR = Actor("system", "test")


def rotated(purpose: str = "token", now: datetime = NOW) -> Key:
    return rotate_key(purpose=purpose, actor=ACTOR, now=now)


def disabled() -> set[str]:
    return set(Key.objects.filter(state=Key.State.DISABLED).values_list("kid", flat=True))


@pytest.mark.parametrize("purpose", Key.Purpose.values)
def test_SA_8_the_only_key_of_a_purpose_is_not_disabled(purpose: str) -> None:
    key = rotated(purpose)
    events = Event.objects.count()
    with pytest.raises(
        InvalidStateError,
        match=f"last {purpose} key .* First publish the next one.*rotate_key {purpose}",
    ):
        disable_key(kid=key.kid, actor=ACTOR, now=NOW)
    assert disabled() == set()
    assert Event.objects.count() == events


def test_SA_8_a_key_is_not_disabled_before_the_next_one_signs() -> None:
    old, new = rotated(), rotated()
    with pytest.raises(InvalidStateError, match="signs from 2026-11-25 09:32:10 UTC on"):
        disable_key(kid=old.kid, actor=ACTOR, now=NOW)
    # From this second on, whether or not a job has recorded the switch.
    disable_key(kid=old.kid, actor=ACTOR, now=SWITCH)
    assert disabled() == {old.kid}
    assert signer(purpose="token", now=SWITCH).kid == new.kid


def test_SA_8_a_key_of_another_purpose_counts_for_nothing() -> None:
    key = rotated("token")
    rotated("audit")
    with pytest.raises(InvalidStateError):
        disable_key(kid=key.kid, actor=ACTOR, now=NOW)


def test_SA_8_a_next_or_retired_key_is_disabled_while_another_signs() -> None:
    old, new = rotated(), rotated()
    disable_key(kid=new.kid, actor=ACTOR, now=NOW)
    assert signer(purpose="token", now=SWITCH).kid == old.kid
    newer = rotated()
    disable_key(kid=old.kid, actor=ACTOR, now=SWITCH)
    assert disabled() == {old.kid, new.kid}
    with pytest.raises(InvalidStateError):
        disable_key(kid=newer.kid, actor=ACTOR, now=SWITCH)


def test_SA_8_a_disabled_key_is_said_to_be_disabled_and_not_the_last() -> None:
    old = rotated()
    rotated()
    disable_key(kid=old.kid, actor=ACTOR, now=SWITCH)
    with pytest.raises(InvalidStateError, match="disabled already"):
        disable_key(kid=old.kid, actor=ACTOR, now=SWITCH)


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_SA_8_of_two_who_disable_the_two_last_keys_at_once_one_is_refused() -> None:
    """By one administrator's clock the next key does not sign yet, so they disable that one.

    The other, a moment later, disables the old key.
    """
    old, new = rotated(), rotated()
    refusals: list[str] = []

    def disable() -> None:
        try:
            disable_key(kid=new.kid, actor=ACTOR, now=NOW)
        except InvalidStateError as error:
            refusals.append(error.description)
        finally:
            connection.close()

    other = threading.Thread(target=disable)
    with transaction.atomic():
        list(Key.objects.select_for_update().order_by("pk"))
        other.start()
        wait_for_lock_waiters()
        disable_key(kid=old.kid, actor=ACTOR, now=SWITCH)
    other.join()
    assert disabled() == {old.kid}
    assert len(refusals) == 1
    assert may_sign(purpose="token", now=SWITCH)
