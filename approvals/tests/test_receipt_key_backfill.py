"""Each receipt names its signing key, so an index counts its receipts, earlier releases' too."""

from datetime import datetime
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.encoding import b64u_encode
from approvals.models import Receipt
from approvals.services import receipt_key_backfill
from approvals.services.cascade_previews import describe_key
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.cast import Person
from approvals.tests.test_forgotten_receipts import receipt
from kms.models import Key
from registry.models import Grant
from registry.tests.cast import TESTER

pytestmark = pytest.mark.django_db


@pytest.fixture
def key(alice: Person, reading: Grant) -> Key:
    """It signed the receipt of one approval."""
    assert alice.approve(reading).status_code == 200
    return Key.objects.get(purpose="receipt")


def as_release_3(row: Receipt, **changes: str) -> Receipt:
    """The receipt as release 3 stores it, without a key name; with `changes`."""
    names = [
        field.attname for field in Receipt._meta.concrete_fields if field.name not in {"id", "kid"}
    ]
    values = {name: getattr(row, name) for name in names}
    return Receipt.objects.create(
        **values | changes | {"challenge": bytes(32 - Receipt.objects.count()) + b"x"}
    )


def said(key: Key, now: datetime) -> list[str]:
    return list(describe_key(key, now).facts)


def test_a_receipt_says_which_key_signed_it(key: Key, now: datetime) -> None:
    row = Receipt.objects.get()
    assert row.kid == key.kid
    assert said(key, now)[0].startswith("1 receipt that it signed")
    other = Key(purpose="receipt", algorithm="EdDSA", kid="other", active_from=now)
    assert said(other, now) == ["0 receipts that it signed are no longer valid as proof."]


def test_receipts_that_do_not_say_so_are_counted_and_filled_in_by_jobs(
    key: Key, alice: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [as_release_3(Receipt.objects.order_by("id")[0]) for _ in range(3)]
    erased = receipt("approval", uuid4(), alice.human)
    before = said(key, now)
    assert before[0].startswith("4 receipts that it signed")
    assert "cannot act until its owner approves it again" in before[1]
    monkeypatch.setattr(receipt_key_backfill, "BATCH", 3)
    assert expire_everything(now=now)["receipts"] == 3
    assert expire_everything(now=now)["receipts"] == 1
    assert expire_everything(now=now)["receipts"] == 0
    assert {Receipt.objects.get(pk=row.pk).kid for row in rows} == {key.kid}
    erased.refresh_from_db()
    # Not a receipt: no key signed it.
    assert erased.kid == ""
    assert said(key, now) == before


def test_the_key_of_a_receipt_is_filled_in_once_and_with_nothing_else(key: Key) -> None:
    written, old = Receipt.objects.get(), as_release_3(Receipt.objects.get())

    def changed(row: Receipt, **values: object) -> bool:
        try:
            with transaction.atomic():
                return bool(Receipt.objects.filter(pk=row.pk).update(**values))
        except IntegrityError:
            return False

    for more in ({"decision": "deny"}, {"compact": ""}, {"subject": "other"}):
        assert not changed(old, kid=key.kid, **more)
    assert not changed(old, decision="deny")
    assert changed(old, kid=key.kid)
    for row in (written, old):
        assert not changed(row, kid="other")
        assert not changed(row, kid=None)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Receipt.objects.filter(pk=old.pk).delete()


def test_the_key_stays_with_a_receipt_whose_text_is_erased(
    key: Key, alice: Person, now: datetime
) -> None:
    human = alice.human
    delete_human(human=human, actor=TESTER, now=now)
    row = Receipt.objects.get()
    assert (row.compact, row.kid) == ("", key.kid)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        Receipt.objects.update(kid="other")


@pytest.mark.postgres
def test_the_receipts_of_a_key_are_counted_without_their_texts(key: Key, now: datetime) -> None:
    with CaptureQueriesContext(connection) as queries:
        said(key, now)
    counts = [
        each["sql"]
        for each in queries
        if "COUNT" in each["sql"] and "approvals_receipt" in each["sql"]
    ]
    assert len(counts) == 2
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for sql in counts:
            cursor.execute(f"EXPLAIN {sql}")
            assert "receipt_kid" in str(cursor.fetchall())


def test_the_longest_name_of_a_key_is_filled_in(key: Key) -> None:
    row = Receipt.objects.get(kid=key.kid)
    header = b64u_encode(b'{"alg":"EdDSA","kid":"' + b"k" * 64 + b'"}')
    long = as_release_3(row, compact=f"{header}.{row.compact.partition('.')[2]}")
    receipt_key_backfill.fill_kids()
    assert Receipt.objects.get(pk=long.pk).kid == "k" * 64


def test_a_name_that_no_key_has_stops_no_other_receipt(key: Key) -> None:
    """A serving process may add such a row; the column refuses the name, which must not stop the
    job.
    """
    row = Receipt.objects.get(kid=key.kid)
    header = b64u_encode(b'{"alg":"EdDSA","kid":"' + b"k" * 65 + b'"}')
    forged = as_release_3(row, compact=f"{header}.{row.compact.partition('.')[2]}")
    honest = as_release_3(row)
    assert receipt_key_backfill.fill_kids() == 2
    assert [Receipt.objects.get(pk=each.pk).kid for each in (forged, honest)] == ["", key.kid]
