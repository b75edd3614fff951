"""A write notices what another process did since the check it relies on."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import F
from django.utils import timezone

from agentauth.protocol.errors import InvalidStateError
from approvals.models import Passkey
from approvals.services import challenges, continue_after_restore
from approvals.tests.cast import Person
from kms.models import Key
from registry.tests.cast import TESTER
from verifier.models import Home
from verifier.services import rollback_hold
from verifier.services.replay_epochs import read_or_create_row

pytestmark = pytest.mark.django_db


def after(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, act: Callable[[], object]
) -> None:
    """Run `act` right after this function of the module returned."""
    real = getattr(module, name)

    def both(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        act()
        return found

    monkeypatch.setattr(module, name, both)


def test_WA_20_of_two_signatures_with_one_counter_one_is_refused(
    alice: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def use_elsewhere() -> None:
        Passkey.objects.update(sign_count=F("sign_count") + 1)

    with monkeypatch.context() as patch:
        after(patch, challenges, "verify_assertion", use_elsewhere)
        refused = alice.sign_in()
    assert refused.status_code == 400
    assert "at the same moment" in refused.json()["error_description"]
    alice.device.sign_count += 1
    assert alice.sign_in().status_code == 200


def test_SA_13_of_two_operators_who_continue_one_succeeds(
    keys: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollback_hold.hold(read_or_create_row()[0], "It was set back.")
    before = list(Key.objects.order_by("kid"))
    after(
        monkeypatch,
        continue_after_restore,
        "_read_lost_history",
        lambda: Home.objects.update(history="20261129021500", held_at=None),
    )
    with pytest.raises(InvalidStateError, match="Another operator"):
        continue_after_restore.continue_after_restore(
            operator="alice", undetected=False, actor=TESTER, now=timezone.now()
        )
    assert list(Key.objects.order_by("kid")) == before
