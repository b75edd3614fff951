"""What ended after the backup ends again, from what our services copied to the store (SA-13)."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidClientError, NotFoundError
from agentauth.protocol.keys import PrivateKey
from approvals.services.continue_after_restore import continue_after_restore
from approvals.services.human_suspension_and_erasure import change_role
from approvals.services.reapply_endings import ENDS, end_again
from approvals.tests.cast import Person
from approvals.tests.database_rollback import restored, set_back
from audit import kinds
from audit.archive.store_move import move_store
from audit.checkpoints.checkpoint_copies import ContradictedError, StoreChangedError
from audit.checkpoints.endings_in_store import ENDINGS, Ending
from audit.checkpoints.rollback_check import check_history
from audit.checkpoints.signing import checkpoint_log
from audit.models import Event
from audit.services import seal_audit
from kms.models import KeyCertificate
from kms.process_key_certificates import certify, revoke_certificate
from kms.services import ensure_key
from registry.models import Agent, Grant, ServiceProvider
from registry.roles import Role
from registry.services.agent_claims import find_claim
from registry.services.barred_keys import bar_disclosed_key, is_barred
from registry.services.grants import revoke_grant, suspend_grant
from registry.services.humans import create_human, suspend_human
from registry.services.provider_authentication import authenticate_service_provider
from registry.services.service_providers import (
    end_previous_secrets,
    rotate_secret,
)
from registry.tests.cast import TESTER, AgentClient, approved, claim_link

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _outside(settings: Settings, tmp_path: Path, keys: None, now: datetime) -> None:
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)


def sign() -> None:
    """What a checkpoint covers is in the store."""
    seal_audit(now=timezone.now())
    checkpoint_log(now=timezone.now(), at_once=True)


def lost(happens: Callable[[], object]) -> None:
    """Let it happen after the backup, with its copy in the store, then restore the backup."""
    restored(happens, end=sign)


def test_each_ending_that_is_kept_outside_can_be_repeated() -> None:
    assert set(ENDS) == set(ENDINGS)


def test_SA_13_an_agents_old_key_stays_dead_and_so_does_its_agent(
    agent: AgentClient, now: datetime
) -> None:
    """The backup does not know its new key: a thief of the old key could use it again."""
    old, row = agent.jkt, agent.agent()
    lost(agent.rotate)
    assert is_barred(old)
    assert Agent.objects.get(pk=row.pk).status == Agent.Status.REVOKED
    assert agent.call("GET", "/v1/agents/me").status_code == 401


def test_SA_13_a_disclosed_key_stays_barred_also_where_no_agent_has_it(now: datetime) -> None:
    key = PrivateKey.generate("EdDSA").public
    lost(lambda: bar_disclosed_key(key=key, actor=TESTER, now=timezone.now()))
    assert is_barred(key.thumbprint)


def test_SA_13_ended_secret_cannot_authenticate_after_a_restore(
    provider_and_secret: tuple[ServiceProvider, str], now: datetime
) -> None:
    provider, first = provider_and_secret
    second = rotate_secret(service_provider=provider, actor=TESTER, now=now)
    # Valid in the backup, as the previous secret.
    client = str(provider.pk)
    assert authenticate_service_provider(client_id=client, secret=first) == provider
    lost(lambda: end_previous_secrets(service_provider=provider, actor=TESTER, now=timezone.now()))
    with pytest.raises(InvalidClientError):
        authenticate_service_provider(client_id=client, secret=first)
    assert authenticate_service_provider(client_id=client, secret=second) == provider
    lost(
        lambda: [
            rotate_secret(service_provider=provider, actor=TESTER, now=timezone.now()) for _ in "ab"
        ]
    )
    with pytest.raises(InvalidClientError):
        authenticate_service_provider(client_id=client, secret=second)


def test_SA_13_a_certificate_that_was_revoked_stays_revoked(now: datetime) -> None:
    ensure_key(purpose="token", actor=TESTER, now=now)
    row = certify(PrivateKey.generate("EdDSA").public, process=7, now=now)
    lost(lambda: revoke_certificate(serial=str(row.serial), actor=TESTER, now=timezone.now()))
    assert KeyCertificate.objects.get(pk=row.pk).state == KeyCertificate.State.REVOKED


def test_SA_13_what_an_administrator_suspended_waits_for_one(
    alice: Person, agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    held = approved(agent, service_provider, now=now)
    own = approved(agent, service_provider, now=now)

    def happens() -> None:
        for grant, by_admin in ((held, True), (own, False)):
            row = Grant.objects.select_related("agent").get(pk=grant.pk)
            suspend_grant(grant=row, by_admin=by_admin, actor=TESTER, now=timezone.now())

    lost(happens)
    for grant, waits in ((held, False), (own, True)):
        grant.refresh_from_db()
        assert (grant.status, grant.suspension_cause) == ("suspended", "restored")
        assert grant.waits_for_signature(now) is waits


def test_SA_13_a_suspended_administrator_does_not_come_back_as_the_last(
    admin: Person, now: datetime
) -> None:
    human = admin.human

    def happens() -> None:
        create_human(email="new@example.org", name="New", role=Role.OWNER, actor=TESTER, now=now)
        suspend_human(human=human, actor=TESTER, now=timezone.now())

    lost(happens)
    human.refresh_from_db()
    assert human.status == "suspended"


def test_SA_13_a_role_that_changed_after_the_backup_does_not_come_back(
    admin: Person, alice: Person, now: datetime
) -> None:
    former, other = admin.human, alice.human

    def happens() -> None:
        create_human(email="new@example.org", name="New", role=Role.OWNER, actor=TESTER, now=now)
        for human in (former, other):
            change_role(human=human, role=Role.AUDITOR, actor=TESTER, now=timezone.now())

    lost(happens)
    # The backup has the former role of one and none of the other.
    for human in (former, other):
        human.refresh_from_db()
        assert (human.is_staff, human.admin_role, human.seal) == (False, None, None)


def test_SA_13_a_claim_link_that_may_have_been_used_ends(now: datetime) -> None:
    client = AgentClient()
    assert client.register().status_code == 201
    row = client.agent()
    links = []

    def happens() -> None:
        # The lost history contains a second link as well.
        Agent.objects.filter(pk=row.pk).update(claim_expires_at=now)
        assert client.register().status_code == 200
        links.append(claim_link(client.agent())[0])

    links.append(claim_link(row)[0])
    lost(happens)
    assert client.register().status_code == 200
    links.append(claim_link(client.agent())[0])
    assert len(set(links)) == 3
    for link in links[:2]:
        with pytest.raises(NotFoundError):
            find_claim(link.rstrip("/").rpartition("/")[2], now=timezone.now())


def test_SA_13_backup_from_before_a_store_move_resumes_in_the_new_one(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    settings: Settings,
    tmp_path: Path,
) -> None:
    """By the steps of docs/restore.md: the new store has the old content and what came later."""
    grant = approved(agent, service_provider, now=now)
    sign()
    old, new = settings.AUDIT_STORE, f"file:{tmp_path / 'new'}"
    with set_back():
        settings.AUDIT_STORE = new
        move_store(source=old, actor=TESTER, now=now)
        revoke_grant(grant=Grant.objects.get(pk=grant.pk), actor=TESTER, now=timezone.now())
        sign()
    with pytest.raises(StoreChangedError):
        check_history(None)
    with pytest.raises(ContradictedError, match="set back"):
        move_store(source=old, actor=TESTER, now=now)
    done = continue_after_restore(
        operator="alice", undetected=True, actor=TESTER, now=timezone.now()
    )
    grant.refresh_from_db()
    assert grant.status == Grant.Status.REVOKED
    move_store(source=old, actor=TESTER, now=timezone.now())
    sign()
    assert list((tmp_path / f"new/log-{done.log}/checkpoints").iterdir())
    check_history(None)


@pytest.mark.parametrize("kind", sorted(ENDS))
def test_SA_13_what_names_nothing_of_this_database_ends_nothing(kind: str, now: datetime) -> None:
    """An attacker's object in the store: it does not keep the operator from continuing."""
    before = Event.objects.count()
    assert end_again(Ending(kind, "x" * 64), actor=TESTER, now=now) is False
    assert Event.objects.count() == before


def test_SA_13_an_agent_that_both_hold_already_is_not_ended_once_more(
    agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    again = [
        end_again(Ending(kinds.AGENT_SUSPENDED, str(row.pk)), actor=TESTER, now=now)
        for _ in range(2)
    ]
    assert again == [True, False]
    assert (agent.agent().admin_holds, agent.agent().owner_holds) == (True, True)
