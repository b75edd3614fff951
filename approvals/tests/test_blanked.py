"""`verify_audit` reports receipts and openings an attacker removed while their owner exists."""

from datetime import datetime
from typing import Any

import pytest
from django.db import transaction

from agentauth.protocol.encoding import b64u_encode, sha256
from approvals.models import Receipt
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests.cast import Person
from approvals.tests.test_forgotten import named
from approvals.tests.test_forgotten_receipts import BLANK, paying, receipt
from audit import kinds
from audit.models import DroppedMonth, Event, Opening
from audit.services import record, seal_audit
from audit.verify.verification import verify_log
from registry.models import Agent, Grant, Human
from registry.services.evidence_contradictions import ERASURE_MISSING
from registry.tests.cast import TESTER, AgentClient, enrolled
from verifier.models import Confirmation

pytestmark = pytest.mark.django_db


@pytest.fixture
def gone(bob: Person, now: datetime) -> tuple[Human, Agent]:
    """A deleted user, and the agent that was theirs."""
    agent = enrolled(bob.human, now=now).agent()
    human = bob.human
    delete_human(human=human, actor=TESTER, now=now)
    return human, agent


def tell(
    gone: Human, agent: Agent, receipts: list[Receipt], events: list[Event], now: datetime
) -> None:
    """Insert an event that claims the erasure of a deleted user."""
    data: dict[str, Any] = {"agents": [str(agent.pk)], "events": [str(each.pk) for each in events]}
    data["receipts"] = {str(row.pk): b64u_encode(sha256(row.compact.encode())) for row in receipts}
    with transaction.atomic():
        record(kind=kinds.HUMAN_ERASED, actor=TESTER, at=now, human_id=gone.pk, data=data)


def blank(rows: list[Receipt]) -> None:
    pks = [row.pk for row in rows]
    assert Receipt.objects.filter(pk__in=pks).update(**BLANK) == len(pks)


def test_an_agent_lent_to_a_deleted_person_hides_no_receipt_or_opening(
    alice: Person, agent: AgentClient, reading: Grant, gone: tuple[Human, Agent], now: datetime
) -> None:
    assert alice.approve(reading).status_code == 200
    hers, row = alice.human, agent.agent()
    rows = [Receipt.objects.get(), receipt("claim", row.pk, hers)]
    Grant.objects.filter(pk=reading.pk).update(status="revoked", ended_at=now)
    with transaction.atomic():
        Agent.objects.filter(pk=row.pk).update(human=gone[0])
        blank(rows)
        Agent.objects.filter(pk=row.pk).update(human=hers)
    events = [*Event.objects.filter(agent_id=row.pk)]
    assert Opening.objects.filter(event__in=events).delete()[0] > 0
    tell(gone[0], row, rows, events, now)
    seal_audit(now=now)
    assert named(now) == {str(reading.pk): ERASURE_MISSING, str(row.pk): ERASURE_MISSING}
    assert not verify_log().ok


@pytest.mark.parametrize("dropped", [False, True])
def test_a_grant_lent_to_a_deleted_persons_agent_hides_no_receipt(
    admin: Person, gone: tuple[Human, Agent], now: datetime, *, dropped: bool
) -> None:
    place, asked = paying()
    rows = [
        receipt("approval", place.grant.pk, admin.human),
        receipt("confirmation", asked.pk, admin.human),
    ]
    Grant.objects.filter(pk=place.grant.pk).update(status="revoked", ended_at=now, agent=gone[1])
    blank(rows)
    if dropped:
        DroppedMonth.objects.create(
            month=now.date(), events=0, first_leaf=0, last_leaf=0, kept_from=0, at=now
        )
    else:
        tell(gone[0], gone[1], rows, [], now)
    assert named(now) == {str(place.grant.pk): ERASURE_MISSING, str(asked.pk): ERASURE_MISSING}


@pytest.mark.parametrize("kind", ["claim", "approval", "confirmation"])
def test_an_event_that_contradicts_the_log_hides_no_receipt(
    kind: str, admin: Person, gone: tuple[Human, Agent], now: datetime
) -> None:
    place, asked = paying()
    subject = {"claim": place.agent.pk, "approval": place.grant.pk, "confirmation": asked.pk}[kind]
    row = receipt(kind, subject, admin.human)
    with transaction.atomic():
        record(
            kind=kinds.AGENT_CLAIMED, actor=TESTER, at=now, agent_id=subject, human_id=gone[0].pk
        )
        told: dict[str, Any] = {
            "agent_id": gone[1].pk,
            "grant_id": subject,
            "data": {"confirmation_id": str(subject)},
        }
        for each in (kinds.GRANT_REQUESTED, kinds.CONFIRMATION_REQUESTED):
            record(kind=each, actor=TESTER, at=now, **told)
    Grant.objects.filter(pk=place.grant.pk).update(status="revoked", ended_at=now)
    Agent.objects.filter(pk=place.agent.pk).update(human=gone[0])
    blank([row])
    tell(gone[0], gone[1], [row], [], now)
    assert named(now) == {str(subject): ERASURE_MISSING}


def test_what_the_deleted_persons_own_was_stays_unnamed(
    admin: Person, gone: tuple[Human, Agent], now: datetime
) -> None:
    place, asked = paying()
    for kind, row in (("claim", place.agent), ("approval", place.grant), ("confirmation", asked)):
        receipt(kind, row.pk, admin.human)
    delete_human(human=place.human, actor=TESTER, now=now)
    assert not Receipt.objects.exclude(compact="").exists()
    assert Confirmation.objects.filter(pk=asked.pk).exists()
    assert named(now) == {}


@pytest.mark.parametrize(
    "data", [{}, {"agents": 7, "events": None}, {"agents": ["x"], "events": [[]], "receipts": {}}]
)
def test_OG_28_malformed_erasure_excuses_nothing_and_stops_no_check(
    alice: Person, reading: Grant, gone: tuple[Human, Agent], now: datetime, data: dict[str, Any]
) -> None:
    """Otherwise a process that may add events could crash `verify_audit` with one."""
    seal_audit(now=now)
    lost = Opening.objects.filter(event__grant_id=reading.pk).first()
    assert lost is not None
    lost.delete()
    with transaction.atomic():
        record(kind=kinds.HUMAN_ERASED, actor=TESTER, at=now, human_id=gone[0].pk, data=data)
        record(kind=kinds.INVITATION_ERASED, actor=TESTER, at=now, data=data)
    seal_audit(now=now)
    assert not verify_log().ok
    named(now)


@pytest.mark.parametrize("dropped", [False, True])
@pytest.mark.parametrize("kind", ["approval", "confirmation", "claim", "resume", "other"])
def test_a_blank_receipt_about_no_id_is_named_and_stops_no_check(
    alice: Person, gone: tuple[Human, Agent], now: datetime, kind: str, *, dropped: bool
) -> None:
    """Otherwise a serving process could crash `verify_audit` with one, and so hide its findings."""
    subjects = ("no id", "", "\u202e")
    rows = [receipt(kind, subject, alice.human, compact="") for subject in subjects]
    if dropped:
        DroppedMonth.objects.create(
            month=now.date(), events=0, first_leaf=0, last_leaf=0, kept_from=0, at=now
        )
    tell(gone[0], gone[1], rows, [], now)
    assert named(now) == dict.fromkeys(subjects, ERASURE_MISSING)
