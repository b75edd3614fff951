"""A user is deleted while another works: what that work leaves is erased as well."""

import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError
from approvals.services.expiry import expire_everything
from approvals.services.human_suspension_and_erasure import delete_human
from approvals.tests import canary_texts as words
from approvals.tests.canary_texts import Planted, in_database, in_files, listed, word
from approvals.tests.cast import Person
from audit.archive import segment_writing
from audit.archive.archive_verification import prove_archive
from audit.checkpoints.signing import checkpoint_log
from audit.db.role_granting import grant_serving_role
from audit.log.sequencer import sequence_until_empty
from audit.services import seal_audit
from audit.stores.store_factory import store_at
from audit.tests.signing import sign_with
from audit.tests.tampering import execute
from audit.tests.waiting import wait_for_lock_waiters
from audit.verify.verification import verify_log
from registry.models import Agent, Human
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER, AgentClient
from verifier.tests.scene import Scene


def started(act: Callable[[], Any]) -> threading.Thread:
    def run() -> None:
        try:
            act()
        finally:
            connection.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Path:
    """A signing log, with a store."""
    sign_with(settings, f"file:{tmp_path}")
    return tmp_path


@pytest.fixture
def planted(keys: None, now: datetime) -> Planted:
    made = Planted(now)
    made.come_in()
    made.claim(made.register("robot"))
    return made


@pytest.mark.parametrize("deletion_first", [True, False])
@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_OG_28_a_request_that_waits_for_the_deletion_leaves_nothing(
    planted: Planted, admin: Person, now: datetime, *, deletion_first: bool
) -> None:
    provider, _ = words.provider_of("Acme", 8001, now)
    [client], human = planted.agents, planted.person.human
    acts: list[Callable[[], Any]] = [
        lambda: delete_human(human=human, actor=TESTER, now=now),
        lambda: client.ask(
            provider, capabilities=words.capabilities("robot"), reason=word("waiting")
        ),
        lambda: client.replace(later=9, description=word("described")),
    ]
    threads = []
    with transaction.atomic():
        Agent.objects.select_for_update(no_key=True).get(pk=client.agent().pk)
        for act in acts if deletion_first else acts[::-1]:
            threads.append(started(act))
            wait_for_lock_waiters(len(threads))
    for thread in threads:
        thread.join()
    human.refresh_from_db()
    assert human.status == "deleted"
    assert listed(in_database()) == ""
    seal_audit(now=now)
    assert verify_log().ok


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_OG_28_jobs_erase_a_decision_committed_after_the_deletion(
    planted: Planted, admin: Person, now: datetime
) -> None:
    provider, secret = words.provider_of("Acme", 8001, now)
    [client], human = planted.agents, planted.person.human
    grant = planted.request(client, provider, "robot", "purpose")
    assert planted.person.approve(grant).status_code == 200
    grant.refresh_from_db()
    place = Scene(grant, client.agent(), human, provider, secret, client.signer, "")
    action = {"type": "custom", "namespace": "vendor.acts", "name": "merge"}
    with transaction.atomic():
        allowed = place.ask(
            action | {"resource": f"records/{word('robot_custom')}/{word('late')}"},
            idempotency_key=word("late_key"),
        )
        assert allowed["valid"], allowed
        started(lambda: delete_human(human=human, actor=TESTER, now=now)).join()
        assert Human.objects.get(pk=human.pk).status == "deleted"
    assert in_database().keys() == {
        "audit_opening.value", "registry_token.claims", "verifier_agentoperation.answer",
        "verifier_agentoperation.key",
    }  # fmt: skip
    assert expire_everything(now=now)["people"] == 1
    assert listed(in_database()) == ""
    seal_audit(now=now)
    assert verify_log().ok


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgres
def test_agent_enrolled_during_account_deletion_is_not_missed(
    planted: Planted, admin: Person, now: datetime
) -> None:
    human, failed = planted.person.human, list[str]()
    _, code = create_enrolment_code(human=human, actor=TESTER, now=now)

    def delete() -> None:
        try:
            delete_human(human=human, actor=TESTER, now=now)
        except InvalidStateError as error:
            failed.append(error.description)

    with transaction.atomic():
        client = AgentClient()
        assert (
            client.register(code, manifest=client.manifest(name=word("enrolled"))).status_code
            == 201
        )
        deletion = started(delete)
        wait_for_lock_waiters(1)
    deletion.join()
    assert failed == [
        "An agent was added to this account meanwhile. Nothing was deleted: try again."
    ]
    delete()
    assert len(failed) == 1
    assert client.agent().status == "revoked"
    assert listed(in_database()) == ""


@pytest.mark.django_db
def test_OG_28_a_deletion_while_the_archive_writes_leaves_it_whole(
    planted: Planted, admin: Person, store: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, human = store_at(f"file:{store}"), planted.person.human

    def reached(point: str) -> None:
        if point == "archive.after_stage":
            delete_human(human=human, actor=TESTER, now=now)

    def archive() -> None:
        sequence_until_empty(now=now)
        checkpoint_log(now=now, at_once=True)
        segment_writing.archive_audit(now=now, store=outside)

    with monkeypatch.context() as patch:
        patch.setattr(segment_writing, "fault_point", reached)
        archive()
    archive()
    human.refresh_from_db()
    assert human.status == "deleted"
    assert listed(in_files(store)) == ""
    assert prove_archive(store=outside, now=now).ok
    assert verify_log().ok


@pytest.mark.django_db
@pytest.mark.postgres
def test_the_serving_role_has_the_rights_to_forget_a_person(
    admin: Person, store: Path, now: datetime
) -> None:
    execute('CREATE ROLE "serving role" LOGIN')
    # First: it locks the log's table, which another thread could hold while it waits for our rows.
    grant_serving_role("serving role")
    planted = Planted(now)
    words.live(planted, admin)
    human = planted.person.human
    execute('SET ROLE "serving role"')
    delete_human(human=human, actor=TESTER, now=now)
    assert expire_everything(now=now)["people"] == 1
    execute("RESET ROLE")
    assert listed(in_database()) == ""
