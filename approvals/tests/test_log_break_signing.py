"""An owner signs how the log continues after a restore: one receipt, here and outside (SA-13)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.approval_receipt import verify_receipt
from agentauth.protocol.errors import TemporarilyUnavailableError
from approvals.models import Challenge, Receipt
from approvals.services import log_break_signing
from approvals.tests.cast import Person, registered
from approvals.tests.database_rollback import restored
from approvals.tests.test_ending_races import Press
from audit import kinds
from audit.models import Event, LogBreak
from audit.stores import ImmutableError, Store
from audit.stores.folder import FolderStore
from audit.stores.store_factory import store_at
from audit.tests.waiting import wait_for_lock_waiters
from kms.services import ensure_key, verification_keys
from registry.services.log_keys import audit_vkeys
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(settings: Settings, tmp_path: Path, keys: None) -> Store:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    return store_at(settings.AUDIT_STORE)


@pytest.fixture
def row(admin: Person) -> LogBreak:
    ensure_key(purpose="audit", actor=TESTER, now=timezone.now())
    done = restored()
    admin.sign_in()
    return done


def path_of(row: LogBreak) -> str:
    return f"/restores/{row.name}/"


def ask(owner: Person, row: LogBreak) -> dict[str, Any]:
    """Press the button, and sign: what the page then posts."""
    options = owner.press_on(path_of(row), decision="continue").json()["publicKey"]
    return {"credential": owner.device.assertion(options)}


def finish(owner: Person, row: LogBreak, signed: dict[str, Any]) -> tuple[int, str]:
    answer = owner.post(f"{path_of(row)}decide", signed)
    return answer.status_code, answer.json().get("error", "")


def sign(owner: Person, row: LogBreak) -> tuple[int, str]:
    return finish(owner, row, ask(owner, row))


def receipts_outside(store: Store, row: LogBreak) -> list[str]:
    return [key for key in store.keys(f"log-{row.name}/receipt") if key.endswith(".jws")]


def test_SA_13_an_owner_signs_the_break_and_the_receipt_is_kept_outside(
    store: Store, row: LogBreak, admin: Person, alice: Person
) -> None:
    path = path_of(row)
    assert alice.get(path).status_code == 404
    assert alice.post(f"{path}statement").status_code == 404
    assert path.encode() in admin.get("/admin/").content
    drawn = admin.drawn_at(path)
    assert sign(admin, row) == (200, "")
    [key] = receipts_outside(store, row)
    kept = store.get(key)
    assert kept is not None
    keys = verification_keys(purpose="receipt", now=timezone.now())
    receipt = verify_receipt(kept.decode(), keys=keys, expected_issuer="http://localhost:8000")
    body = receipt.statement.body
    assert (body["kind"], body["name"], body["size"]) == ("break", row.name, row.size)
    assert body["vkeys"] == [each for each in audit_vkeys() if row.name in each]
    assert body["origin"] == f"localhost:8000/v1/audit/{row.name}"
    assert Receipt.objects.get(kind="break").compact == kept.decode()
    assert path.encode() not in admin.get("/admin/").content
    assert admin.post(f"{path}statement", {"drawn": drawn}).status_code == 409


def test_SA_13_receipt_that_cannot_be_stored_outside_is_not_kept_here(
    store: Store, row: LogBreak, admin: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_uri: str) -> Store:
        raise TemporarilyUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(log_break_signing, "store_at", away)
        assert sign(admin, row) == (503, "temporarily_unavailable")
    assert not Receipt.objects.exists()
    assert not Event.objects.filter(kind=kinds.BREAK_SIGNED).exists()
    assert path_of(row).encode() in admin.get("/admin/").content
    assert sign(admin, row) == (200, "")
    assert Receipt.objects.filter(kind="break").count() == 1


class _AnswerLost(FolderStore):
    """Stores, but its answer does not arrive."""

    def put_once(self, key: str, data: bytes | Path) -> None:
        super().put_once(key, data)
        raise TemporarilyUnavailableError


class _NoLock(FolderStore):
    """As S3 refuses a bucket without Object Lock."""

    def put_once(self, key: str, data: bytes | Path) -> None:
        raise ImmutableError("The bucket has no Object Lock.")


def with_store(patch: pytest.MonkeyPatch, kind: Callable[[Path], Store], folder: Path) -> None:
    patch.setattr(log_break_signing, "store_at", lambda _uri: kind(folder))


def test_SA_13_receipt_of_a_failed_signing_outside_leaves_the_break_signable(
    store: Store, row: LogBreak, admin: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        with_store(patch, _AnswerLost, tmp_path / "outside")
        assert sign(admin, row) == (503, "temporarily_unavailable")
    assert len(receipts_outside(store, row)) == 1
    assert not Receipt.objects.exists()
    assert sign(admin, row) == (200, "")
    kept = Receipt.objects.get(kind="break").compact.encode()
    assert kept in {store.get(key) for key in receipts_outside(store, row)}


def test_SA_13_store_that_refuses_the_receipt_is_named_as_the_state(
    store: Store, row: LogBreak, admin: Person, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_store(monkeypatch, _NoLock, tmp_path / "outside")
    assert sign(admin, row) == (409, "invalid_state")
    assert not Receipt.objects.exists()


@pytest.mark.parametrize("outside", [True, False])
def test_SA_13_second_owner_who_signs_learns_that_it_is_signed(
    outside: bool, store: Store, row: LogBreak, admin: Person, settings: Settings
) -> None:
    if not outside:
        settings.AUDIT_STORE = ""
    other = registered("other@example.org", "Other", now=timezone.now(), is_staff=True)
    first, second = ask(admin, row), ask(other, row)
    assert finish(admin, row, first) == (200, "")
    assert finish(other, row, second) == (409, "invalid_state")
    # The same signature again, by a double click, is answered with its receipt.
    assert finish(admin, row, first) == (200, "")
    assert Receipt.objects.filter(kind="break").count() == 1
    assert Event.objects.filter(kind=kinds.BREAK_SIGNED).count() == 1


def test_SA_13_wrong_signature_uses_up_its_challenge(
    store: Store, row: LogBreak, admin: Person
) -> None:
    options = admin.press_on(path_of(row), decision="continue").json()["publicKey"]
    wrong = admin.device.assertion(options | {"challenge": "AAAA"})
    assert finish(admin, row, {"credential": wrong}) == (400, "invalid_assertion")
    assert Challenge.objects.get(purpose="break").used_at is not None
    right = {"credential": admin.device.assertion(options)}
    assert finish(admin, row, right) == (400, "invalid_assertion")
    assert not Receipt.objects.exists()


@pytest.mark.postgres
@pytest.mark.django_db(transaction=True)
def test_SA_13_of_two_owners_who_sign_at_once_one_gets_a_receipt(
    store: Store, row: LogBreak, admin: Person
) -> None:
    other = registered("other@example.org", "Other", now=timezone.now(), is_staff=True)
    answers = list[tuple[int, str]]()

    def press(owner: Person) -> Callable[[], None]:
        signed = ask(owner, row)
        return lambda: answers.append(finish(owner, row, signed))

    presses = [press(owner) for owner in (admin, other)]
    with transaction.atomic():
        list(Challenge.objects.filter(purpose="break").select_for_update().order_by("pk"))
        started = [Press(each) for each in presses]
        wait_for_lock_waiters(2)
    for each in started:
        each.join()
    assert sorted(answers) == [(200, ""), (409, "invalid_state")]
    assert Receipt.objects.filter(kind="break").count() == 1
