"""Seals of agents cover the owner; those of release 4 count until the upgrade ends (ADR 49)."""

import secrets
from datetime import datetime

import pytest
from django.conf import settings
from django.core.checks import run_checks

from agentauth.protocol.encoding import b64u_encode, sha256
from audit.models import Event
from kms import row_seals
from kms.models import WiderSealsPending
from kms.row_seals import _LABEL, _mac, _sealed_bytes, select_sealed
from kms.seal_backfill import seal_rows, unsealed_rows
from registry.models import Agent, Human, ServiceProvider
from registry.services import enrolment_codes
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER, AgentClient, approved, claim, issue
from registry.tests.test_seals import NEW
from registry.tests.written_rows import write

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]


@pytest.fixture
def upgrading(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation of release 4, as the migration to release 5 left it."""
    WiderSealsPending.objects.create()
    demand = row_seals._Demand(WiderSealsPending.objects)
    for module in (row_seals, enrolment_codes):
        monkeypatch.setattr(module, "WIDER_DEMAND", demand)


def seal_as_release_4(row: Agent, key: str = "") -> None:
    """Without the owner, and with random bytes as the salt."""
    salt = secrets.token_bytes(16)
    said = salt + _sealed_bytes(row, ("id", "jkt"))
    write(row, seal=b64u_encode(salt + _mac(_LABEL, key or settings.SECRET_KEY, said)))


def is_sealed() -> bool:
    return Agent.objects.get().is_sealed()


@pytest.mark.usefixtures("upgrading")
def test_release_4_may_seal_and_claim_until_the_upgrade_ends(
    agent: AgentClient, service_provider: ServiceProvider, bob: Human, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    seal_as_release_4(agent.agent())
    assert issue(agent, grant).status_code == 201
    assert list(unsealed_rows()) == []
    # A claim by release 4 leaves the seal of the unclaimed agent.
    other = AgentClient()
    other.register()
    write(other.agent(), human=bob, status="active", claim_expires_at=None)
    assert len(select_sealed(Agent.objects.all())) == 2
    assert "agentauth.W054" in _advice()

    done = seal_rows(actor=TESTER, now=now)
    assert (done.sealed, done.refused) == ({"registry_agent": 2}, {})
    assert not WiderSealsPending.objects.exists()
    assert "agentauth.W054" not in _advice()
    assert issue(agent, grant).status_code == 201
    [sealed, demanded] = Event.objects.filter(kind__startswith="kms.").exclude(
        kind__startswith="kms.key"
    )
    assert (sealed.kind, sealed.data["adopted"]) == ("kms.rows.sealed", [])
    assert demanded.kind == "kms.seals.demanded"
    for row in Agent.objects.all():
        assert row.is_sealed()
        seal_as_release_4(row)
        row.refresh_from_db()
        assert not row.is_sealed()


def _advice() -> set[str]:
    settings.DEVELOPMENT, before = False, settings.DEVELOPMENT
    try:
        return {str(each.id) for each in run_checks(include_deployment_checks=True)}
    finally:
        settings.DEVELOPMENT = before


@pytest.mark.usefixtures("upgrading")
def test_DJ_17_the_end_of_the_upgrade_seals_no_key_that_was_written(
    agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    write(row, jkt="x" * 43)
    assert not is_sealed()
    assert seal_rows(actor=TESTER, now=now).refused == {"registry_agent": [str(row.pk)]}
    assert not is_sealed()


@pytest.mark.usefixtures("upgrading")
def test_the_end_of_the_upgrade_seals_what_a_former_key_sealed(
    agent: AgentClient, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(settings, "SECRET_KEY_FALLBACKS", [NEW])
    seal_as_release_4(agent.agent(), NEW)
    assert is_sealed()
    assert seal_rows(actor=TESTER, now=now).sealed["registry_agent"] == 1
    monkeypatch.setattr(settings, "SECRET_KEY_FALLBACKS", [])
    assert is_sealed()


def test_a_seal_of_release_4_after_the_upgrade_counts_only_once_adopted(
    agent: AgentClient, now: datetime
) -> None:
    row = agent.agent()
    seal_as_release_4(row)
    assert seal_rows(actor=TESTER, now=now).refused == {"registry_agent": [str(row.pk)]}
    assert not is_sealed()
    assert seal_rows(adopt=True, actor=TESTER, now=now).sealed == {"registry_agent": 1}
    assert is_sealed()


@pytest.mark.parametrize("status", ["unclaimed", "active"])
def test_DJ_17_the_owner_of_no_agent_changes_alone(
    agent: AgentClient, bob: Human, status: str
) -> None:
    client = agent
    if status == "unclaimed":
        client = AgentClient()
        client.register()
    row = client.agent()
    assert row.is_sealed()
    write(row, human=bob, status="active")
    row.refresh_from_db()
    assert not row.is_sealed()
    assert list(unsealed_rows()) == [("registry_agent", str(row.pk))]


def test_a_claim_and_an_enrolment_seal_the_owner(alice: Human, bob: Human, now: datetime) -> None:
    claimed, enrolled_later = AgentClient(), AgentClient()
    for client in (claimed, enrolled_later):
        client.register()
    seals = {client.agent().seal for client in (claimed, enrolled_later)}
    claim(claimed, alice, now=now)
    _, code = create_enrolment_code(human=bob, actor=TESTER, now=now)
    assert enrolled_later.register(code).status_code == 200
    for client, owner in ((claimed, alice), (enrolled_later, bob)):
        row = client.agent()
        assert (row.human, row.is_sealed()) == (owner, True)
        assert row.seal not in seals
        assert client.rotate().status_code == 200
        assert client.agent().is_sealed()


@pytest.mark.usefixtures("upgrading")
def test_release_4_accepts_enrolment_codes_until_the_upgrade_ends(
    alice: Human, now: datetime
) -> None:
    rows = [create_enrolment_code(human=alice, actor=TESTER, now=now) for _ in range(2)]
    for row, code in rows:
        secret = code.partition("-")[2]
        assert bytes(row.digest) == sha256(secret.encode())
    assert AgentClient().register(rows[0][1]).status_code == 201
    seal_rows(actor=TESTER, now=now)
    assert AgentClient().register(rows[1][1]).status_code == 400
    _, code = create_enrolment_code(human=alice, actor=TESTER, now=now)
    assert AgentClient().register(code).status_code == 201
