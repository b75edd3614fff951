"""A deleted user's receipts: which the database allows to blank, and what it reads for that."""

import re
import secrets
from datetime import datetime
from uuid import uuid4

import pytest
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agentauth.protocol.encoding import b64u_encode, canonical_json
from approvals.models import Receipt
from approvals.services import text_erasure
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.cast import Person
from audit import kinds
from audit.models import Event
from audit.services import seal_audit
from audit.tests.tampering import execute
from audit.verify.verification import verify_log
from registry.models import Human
from registry.services.evidence_contradictions import find_contradictions
from registry.tests.cast import TESTER
from verifier.models import Confirmation
from verifier.tests.scene import PAY, Scene, scene

pytestmark = pytest.mark.django_db

BLANK = {"compact": "", "consent_text": "", "passkey_name": ""}


def receipt(kind: str, subject: object, human: Human, *, compact: str = "a.b.c") -> Receipt:
    """As `approvals.services.passkey_signature_flow` stores it; no test reads the text."""
    return Receipt.objects.create(
        kind=kind,
        decision="approve",
        subject=str(subject),
        human=human,
        challenge=secrets.token_bytes(32),
        assertion=bytes(32),
        passkey_name="Key",
        consent_text="Their words",
        compact=compact,
        created_at=timezone.now(),
    )


def paying() -> tuple[Scene, Confirmation]:
    """A user whose agent asked for a confirmation."""
    place = scene(PAY, confirm_above={"value": "1.00", "currency": "EUR"})
    return place, Confirmation.objects.get(pk=place.pay("2.00")["confirmation_id"])


def about(place: Scene, asked: Confirmation, signer: Human) -> list[Receipt]:
    """One receipt of each kind that another user can sign about this user's things."""
    return [
        receipt("approval", place.grant.pk, signer),
        receipt("claim", place.agent.pk, signer),
        receipt("confirmation", asked.pk, signer),
        *(receipt("resume", row.pk, signer) for row in (place.human, place.agent, place.grant)),
    ]


def test_database_lets_only_receipts_about_a_deleted_user_be_blanked(
    bob: Person, alice: Person, now: datetime
) -> None:
    place, asked = paying()
    rows = about(place, asked, bob.human)
    # Of an existing user, and kinds that concern no user.
    others = [receipt("resume", alice.human.pk, bob.human), receipt("resume", uuid4(), bob.human)]
    others += [
        receipt("break", "20270113120000", bob.human),
        receipt("release", "20270113120000", bob.human),
    ]

    def blanks(row: Receipt) -> bool:
        try:
            with transaction.atomic():
                return bool(Receipt.objects.filter(pk=row.pk).update(**BLANK))
        except IntegrityError:
            return False

    assert not any(blanks(row) for row in rows + others)
    # Without the service, which would blank them itself.
    Human.objects.filter(pk=place.human.pk).update(status="deleted")
    assert [blanks(row) for row in rows] == [True] * len(rows)
    # Only the text names what a release covers.
    assert [blanks(row) for row in others] == [False, False, False, True]


def test_receipts_are_blanked_some_hundred_a_statement(
    alice: Person, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    human = alice.human
    for _ in range(5):
        receipt("approval", uuid4(), human)
    monkeypatch.setattr(text_erasure, "BLANKED_AT_ONCE", 2)
    with CaptureQueriesContext(connection) as queries:
        delete_human(human=human, actor=TESTER, now=now)
    updates = [each for each in queries if each["sql"].startswith('UPDATE "approvals_receipt"')]
    assert len(updates) == 3
    assert not Receipt.objects.filter(human=human).exclude(compact="").exists()


def test_each_event_of_an_erasure_names_a_bounded_number(
    keys: None, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked = paying()
    rows = about(place, asked, bob.human)
    monkeypatch.setattr(text_erasure, "TOLD_AT_ONCE", 3)
    delete_human(human=place.human, actor=TESTER, now=now)
    told = [event.data for event in Event.objects.filter(kind=kinds.HUMAN_ERASED).order_by("id")]
    assert len(told) > len(rows) / 3
    assert all(sum(map(len, data.values())) <= 3 for data in told)
    assert [agent for data in told for agent in data["agents"]] == [str(place.agent.pk)]
    hashed = {pk: text for data in told for pk, text in data["receipts"].items()}
    assert {
        str(row.pk): text_erasure._sha256(row.compact) for row in rows
    }.items() <= hashed.items()
    # A reader of the log could combine them.
    seal_audit(now=now)
    assert verify_log().ok
    assert list(find_contradictions(now=now)) == []


def test_no_statement_names_more_of_a_persons_rows_than_a_bounded_number(
    keys: None, bob: Person, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, asked = paying()
    rows = about(place, asked, bob.human)
    monkeypatch.setattr(text_erasure, "NAMED_AT_ONCE", 2)
    with CaptureQueriesContext(connection) as queries:
        delete_human(human=place.human, actor=TESTER, now=now)
    listed = [re.findall(r'"subject" IN \(([^)]*)\)', each["sql"]) for each in queries]
    named = [each.count(",") + 1 for every in listed for each in every]
    # The user, their agent, its grant and its confirmation; of challenges and of receipts.
    assert (len(named), max(named)) == (4, 2)
    assert not Receipt.objects.filter(pk__in=[row.pk for row in rows]).exclude(compact="").exists()


def test_release_of_many_grants_does_not_block_erasure(
    keys: None, bob: Person, now: datetime
) -> None:
    """A receipt may have 64 kB, eight times as much as other signed objects."""
    place, _ = paying()
    named = [
        {"id": str(each), "version": 2} for each in [place.grant.pk, *(uuid4() for _ in range(99))]
    ]
    claims = {
        "statement": {"grants": named},
        "consent_text": "Agent: “Robot”. Service: “Acme”.\n" * 100,
    }
    payload = b64u_encode(canonical_json(claims))
    header = b64u_encode(canonical_json({"alg": "EdDSA", "kid": "k"}))
    compact = f"{header}.{payload}.{'A' * 86}"
    row = receipt("release", "20270113120000", bob.human, compact=compact)
    delete_human(human=place.human, actor=TESTER, now=now)
    row.refresh_from_db()
    assert row.compact == ""


@pytest.mark.postgres
def test_blanking_a_receipt_reads_no_table_of_people_through(bob: Person, now: datetime) -> None:
    place, asked = paying()
    rows = [*about(place, asked, bob.human), receipt("approval", uuid4(), place.human)]
    Human.objects.bulk_create(
        Human(email=f"{number}@deleted.invalid", name="Deleted human", created_at=now)
        for number in range(2_000)
    )
    Human.objects.exclude(pk=bob.human.pk).update(status="deleted")
    execute("ANALYZE registry_human, registry_agent, registry_grant, verifier_confirmation")
    before = read_through()
    for row in rows:
        assert Receipt.objects.filter(pk=row.pk).update(**BLANK) == 1
    assert read_through() == before


def read_through() -> int:
    """How many rows of users this transaction has read by full table scans."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT seq_tup_read FROM pg_stat_xact_user_tables WHERE relname = 'registry_human'"
        )
        return int(cursor.fetchone()[0])
