"""What another process does between a check and the write that rests on it is noticed by the write."""

from collections.abc import Callable
from typing import Any

import pytest
from django.db.models import F

from approvals.models import Passkey
from approvals.services import challenges
from approvals.tests.cast import Person

pytestmark = pytest.mark.django_db


def after(monkeypatch: pytest.MonkeyPatch, module: object, name: str, act: Callable[[], object]) -> None:
    """Let `act` happen right after this function of the module returned."""
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
