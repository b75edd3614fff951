"""After a human is erased, every earlier proof about the log still holds."""

import gzip
import uuid
from datetime import datetime
from pathlib import Path

import pytest
from django.db import transaction
from pytest_django.fixtures import Settings

from agentauth.protocol.merkle_proofs import verify_inclusion
from audit import kinds
from audit.archive.archive_verification import prove_archive
from audit.archive.segment_writing import archive_audit
from audit.checkpoints.signing import checkpoint_log, newest_checkpoint
from audit.log.erasure import erase_openings
from audit.log.event_encoding import entry_of
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import inclusion_proof
from audit.models import Event, Opening
from audit.services import Actor
from audit.stores.store_factory import store_at
from audit.tests.command_output import output_of
from audit.tests.conftest import MakeEvent
from audit.tests.signing import sign_with
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
NAME, EMAIL = "Alice Abel-Zweistein", "alice@example.com"


def test_erasure_keeps_proofs_valid_and_removes_the_name_everywhere(
    settings: Settings, tmp_path: Path, make_event: MakeEvent, now: datetime
) -> None:
    sign_with(settings, f"file:{tmp_path}")
    store, human = store_at(settings.AUDIT_STORE), uuid.uuid4()
    invited = make_event(kind=kinds.SETUP_CODE_CREATED, personal={"email": EMAIL.upper()})
    agent, admin = uuid.uuid4(), Actor("human", str(human))
    unclaimed = make_event(agent_id=agent, personal={"name": NAME})
    denied = make_event(
        kind=kinds.GRANT_DENIED, human_id=uuid.uuid4(), actor=admin, personal={"deny_reason": NAME}
    )
    make_event(kind=kinds.AGENT_CLAIMED, agent_id=agent, human_id=human)
    theirs = [make_event(human_id=human, personal={"name": NAME, "email": EMAIL}) for _ in range(4)]
    others = make_event(personal={"name": "Bob"})
    sequence_until_empty(now=now)
    checkpoint_log(now=now)
    archive_audit(now=now, store=store)

    events = erase_openings(human_id=human, agent_ids=[agent], email=EMAIL)
    assert events == sorted([str(invited.pk), str(denied.pk)])
    assert list(Opening.objects.values_list("event", "value")) == [(others.pk, "Bob")]
    # No event records the erasure yet, so it may be tampering.
    assert "no event says that it was erased" in verify_log().problem
    make_event(kind=kinds.HUMAN_DELETED, human_id=human)
    data = {"agents": [str(agent)], "events": events, "receipts": {}}
    make_event(kind=kinds.HUMAN_ERASED, human_id=human, data=data)
    assert (verify_log().ok, verify_log().erased) == (True, 11)
    assert prove_archive(store=store, now=now).ok
    signed = newest_checkpoint()
    assert signed is not None
    for event in Event.objects.filter(
        pk__in=[invited.pk, unclaimed.pk, denied.pk, *(each.pk for each in theirs)]
    ):
        leaf = event.leaf
        assert entry_of(event) == bytes(leaf.entry)
        path = inclusion_proof(leaf.leaf_index, signed.size)
        verify_inclusion(
            leaf.leaf_index, signed.size, bytes(leaf.leaf_hash), path, bytes(signed.root)
        )
    # Neither in the events nor in any object outside, compressed or not.
    assert NAME not in str(list(Event.objects.values_list("data", flat=True)))
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or NAME.encode() not in readable(file)


def test_an_event_of_an_erasure_excuses_nothing_that_was_not_that_persons(
    make_event: MakeEvent, now: datetime
) -> None:
    """A process that may insert events could hide evidence, so the rest of the log must agree."""
    gone, agent = uuid.uuid4(), uuid.uuid4()
    victim = {"agent_id": agent, "human_id": uuid.uuid4()}
    evidence = [
        make_event(agent_id=agent, personal={"details": "before the claim"}),
        make_event(kind=kinds.AGENT_CLAIMED, **victim, personal={"name": NAME}),
        make_event(kind=kinds.DECISION_ALLOWED, **victim, personal={"details": NAME}),
        make_event(
            kind=kinds.GRANT_DENIED,
            actor=Actor("human", str(uuid.uuid4())),
            personal={"deny_reason": NAME},
        ),
        make_event(kind=kinds.SETUP_CODE_CREATED, human_id=uuid.uuid4(), personal={"email": EMAIL}),
        make_event(personal={"name": NAME}),
    ]
    data = {"agents": [str(agent)], "events": [str(each.pk) for each in evidence], "receipts": {}}
    make_event(kind=kinds.HUMAN_DELETED, human_id=gone)
    # A later claim does not make the agent theirs.
    make_event(kind=kinds.AGENT_CLAIMED, agent_id=agent, human_id=gone)
    make_event(kind=kinds.HUMAN_ERASED, human_id=gone, data=data | {"late": True})
    make_event(kind=kinds.AGENT_DELETED, agent_id=agent)
    make_event(kind=kinds.INVITATION_ERASED, data={"events": data["events"]})
    sequence_until_empty(now=now)
    assert verify_log().ok
    for event in evidence:
        with transaction.atomic():
            Opening.objects.filter(event=event).delete()
            found = verify_log()
            assert (found.ok, found.first_bad) == (False, str(event.pk))
            transaction.set_rollback(True)


def test_an_erasure_of_a_person_who_was_not_deleted_excuses_nothing(
    make_event: MakeEvent, now: datetime
) -> None:
    human, agent = uuid.uuid4(), uuid.uuid4()
    make_event(kind=kinds.AGENT_CLAIMED, agent_id=agent, human_id=human, personal={"name": NAME})
    data = {"agents": [str(agent)], "events": [], "receipts": {}}
    make_event(kind=kinds.HUMAN_ERASED, human_id=human, data=data)
    Opening.objects.all().delete()
    sequence_until_empty(now=now)
    assert not verify_log().ok
    make_event(kind=kinds.HUMAN_DELETED, human_id=human)
    assert verify_log().ok


def readable(path: Path) -> bytes:
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


def test_verify_audit_says_how_many_texts_were_erased(
    settings: Settings, make_event: MakeEvent, now: datetime
) -> None:
    # The registry has no row of these people and agents.
    settings.AUDIT_GRANTS = f"{__name__}.no_grants"
    human, agent = uuid.uuid4(), uuid.uuid4()
    make_event(kind=kinds.AGENT_REGISTERED, agent_id=agent, human_id=human)
    for _ in range(2):
        # These name the agent alone.
        make_event(agent_id=agent, personal={"details": NAME})
    make_event(human_id=human, personal={"name": NAME, "email": EMAIL})
    sequence_until_empty(now=now)
    assert "erased" not in output_of("verify_audit")
    erase_openings(human_id=human, agent_ids=[agent], email=EMAIL)
    make_event(kind=kinds.HUMAN_DELETED, human_id=human)
    data = {"agents": [str(agent)], "events": [], "receipts": {}}
    make_event(kind=kinds.HUMAN_ERASED, human_id=human, data=data)
    sequence_until_empty(now=now)
    assert "4 texts that events committed to were erased" in output_of("verify_audit")


def no_grants(*, now: datetime) -> list[object]:
    return []
