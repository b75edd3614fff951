"""A grant is void without a receipt that says exactly what its row says, however it was written."""

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import time_machine
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.errors import InvalidGrantError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from audit.tests.tampering import as_table_owner, execute
from kms.lifetimes import PUBLISHED_BEFORE_USE
from kms.models import Key
from kms.services import disable_key, rotate_key
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.agent_key_rotation import rotate_agent_key
from registry.services.approval_receipt_check import BOUND, GrantReceiptCache, terms_of
from registry.services.grants import deny_grant, resume_grant, revoke_grant, suspend_grant
from registry.services.token_state import token_state, token_states
from registry.services.tokens import issue_token
from registry.tests.cast import (
    PAY,
    READ_CALENDAR,
    TESTER,
    AgentClient,
    approve,
    approved,
    assert_refused,
    capability,
    enrolled,
    issue,
    pending,
)
from tests import receipts

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("token_key")]

WIDE = [READ_CALENDAR, PAY]


def set_approved(grant: Grant, human: Human, now: datetime, **more: Any) -> None:
    """A single UPDATE, with the serving role's rights."""
    values: dict[str, Any] = {
        "status": Grant.Status.APPROVED,
        "human": human,
        "capabilities": grant.requested_capabilities,
        "envelope": grant.requested_envelope,
        "valid_until": (now + timedelta(days=1)).replace(microsecond=0),
        "decided_at": now,
        "ended_at": None,
        "suspension_cause": "",
    }
    Grant.objects.filter(pk=grant.pk).update(**(values | more))


def stands_refused(client: AgentClient, grant: Grant) -> None:
    answer = assert_refused(issue(client, grant), 400, "invalid_grant")
    assert answer == assert_refused(
        client.call("POST", "/v1/tokens", {"grant_id": "nonsense"}), 400, "invalid_grant"
    )
    assert not Token.objects.filter(grant=grant).exists()


def test_DJ_17_a_pending_grant_set_to_approved_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now, capabilities=WIDE)
    set_approved(grant, alice, now)
    stands_refused(agent, grant)


def test_DJ_17_a_denied_grant_set_to_approved_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    deny_grant(grant=grant, human=alice, reason="", actor=TESTER, now=now)
    receipts.sign(grant, now=now, **receipts.requested_columns(grant, now), decision="deny")
    with pytest.raises(IntegrityError), transaction.atomic():
        set_approved(grant, alice, now)
    # The owner of the tables bypasses the trigger.
    with as_table_owner():
        set_approved(grant, alice, now)
        stands_refused(agent, grant)


def test_DJ_17_a_denials_receipt_that_is_called_an_approval_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    terms = receipts.requested_columns(grant, now)
    receipts.copy(receipts.sign(grant, now=now, **terms, decision="deny"), grant, now=now)
    set_approved(grant, alice, now, valid_until=terms["valid_until"])
    stands_refused(agent, grant)


def test_DJ_17_a_receipt_copied_from_another_grant_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    other = approved(agent, service_provider, now=now)
    grant = pending(agent, service_provider, now=now)
    receipts.copy(receipts.last_of(other), grant, now=now)
    set_approved(grant, alice, now, valid_until=other.valid_until)
    stands_refused(agent, grant)


def _another(kind: str, now: datetime) -> Any:
    """A row of this kind for which nothing was signed."""
    from registry.services.humans import create_human
    from registry.services.service_providers import create_service_provider

    if kind == "human":
        return create_human(email="eve@example.org", name="Eve", actor=TESTER, now=now)
    provider, _ = create_service_provider(
        name="Elsewhere", audience="http://127.0.0.1:8009/v1", allowed=(), actor=TESTER, now=now
    )
    return provider


def end_of(grant: Grant) -> datetime:
    assert grant.valid_until is not None
    return grant.valid_until


CHANGES: dict[str, Callable[[Grant, datetime], Any]] = {
    "another capability": lambda _, __: Grant.objects.update(
        capabilities=[*WIDE, READ_CALENDAR | {"resource": "mail"}]
    ),
    "a higher amount": lambda _, __: Grant.objects.update(
        capabilities=[READ_CALENDAR, PAY | {"max_amount": {"value": "9000.00", "currency": "EUR"}}]
    ),
    "no limit": lambda _, __: Grant.objects.update(envelope={}),
    "a number that no statement can hold": lambda _, __: Grant.objects.update(
        envelope={"max_uses": 1.5}
    ),
    "another end": lambda grant, _: Grant.objects.update(
        valid_until=end_of(grant) + timedelta(seconds=1)
    ),
    "a version before the signed one": lambda _, __: Grant.objects.update(version=1),
    "another service provider": lambda _, now: Grant.objects.update(
        service_provider=_another("provider", now)
    ),
    "another audience": lambda _, __: ServiceProvider.objects.update(
        audience="http://127.0.0.1:8002/v1"
    ),
    "another owner": lambda _, now: Agent.objects.update(human=_another("human", now)),
    "another key of the agent": lambda _, __: Agent.objects.update(jkt="k" * 43),
}


@pytest.mark.parametrize("change", CHANGES)
def test_DJ_17_no_term_of_an_approved_grant_changes_alone(
    change: str, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    client = enrolled(alice, now=now)
    grant = approved(client, service_provider, now=now, capabilities=WIDE, envelope={"max_uses": 3})
    # The signature is for its second version.
    suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    approve(grant, alice, now=now)
    assert issue(client, grant).status_code == 201
    jti = Token.objects.get().jti
    assert token_state(jti).refusal(now) is None
    CHANGES[change](grant, now)
    Token.objects.update(grant_version=Grant.objects.get().version)
    # With the calling key; otherwise the row would belong to no known agent.
    Token.objects.update(jkt=Agent.objects.get().jkt)
    assert token_state(jti).refusal(now) == "grant_inactive"
    assert token_states([jti])[jti].refusal(now) == "grant_inactive"
    if not Agent.objects.get().is_sealed():
        assert assert_refused(issue(client, grant), 401, "invalid_client")
    elif Agent.objects.get().jkt == client.jkt:
        assert assert_refused(issue(client, grant), 400, "invalid_grant")
    assert Token.objects.count() == 1


def test_DJ_17_grant_moved_to_the_owners_other_agent_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, other = approved(agent, service_provider, now=now), enrolled(alice, now=now)
    Grant.objects.update(agent=other.agent())
    stands_refused(other, grant)


def test_DJ_17_provider_that_takes_anothers_audience_gets_no_grant(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant, elsewhere = approved(agent, service_provider, now=now), _another("provider", now)
    ServiceProvider.objects.filter(pk=service_provider.pk).update(
        audience="http://127.0.0.1:8002/v1"
    )
    ServiceProvider.objects.filter(pk=elsewhere.pk).update(audience=service_provider.audience)
    Grant.objects.update(service_provider=elsewhere)
    stands_refused(agent, grant)


def test_DJ_17_last_signed_receipt_counts_not_the_last_written_row(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=WIDE)
    first = receipts.last_of(grant)
    wide = {"capabilities": grant.capabilities, "envelope": grant.envelope}
    suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    narrow = {
        "capabilities": (capability(READ_CALENDAR),),
        "envelope": parse_envelope({"max_uses": 1}),
    }
    approve(grant, alice, now=now, **narrow)
    assert issue(agent, grant).status_code == 201
    Grant.objects.update(**wide)
    receipts.copy(first, grant, now=now)
    assert assert_refused(issue(agent, grant), 400, "invalid_grant")


@pytest.mark.parametrize("capabilities", [[READ_CALENDAR], WIDE], ids=["reading", "paying"])
def test_a_new_key_keeps_what_needs_no_new_signature(
    agent: AgentClient,
    service_provider: ServiceProvider,
    now: datetime,
    capabilities: list[dict[str, Any]],
) -> None:
    grant = approved(agent, service_provider, now=now, capabilities=capabilities)
    new = AgentClient()
    rotate_agent_key(agent=agent.agent(), change=new_key(agent, new), actor=TESTER, now=now)
    status = 400 if PAY in capabilities else 201
    assert issue(new, grant).status_code == status
    # Although no other check refuses it then.
    Grant.objects.update(status=Grant.Status.APPROVED, suspension_cause="")
    assert issue(new, grant).status_code == status


def new_key(old: AgentClient, new: AgentClient) -> Any:
    from agentauth.protocol.key_change import VerifiedKeyChange

    return VerifiedKeyChange(new.signer.public, str(old.agent().pk), old.jkt)


def test_what_a_person_suspended_and_resumed_is_covered_as_before(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    resume_grant(grant=grant, actor=TESTER, now=now)
    assert issue(agent, grant).status_code == 201


def test_DJ_17_a_suspended_grant_set_to_approved_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now)
    Grant.objects.update(status=Grant.Status.APPROVED, suspension_cause="")
    stands_refused(agent, grant)


@pytest.mark.parametrize("cause", ["suspended", "ended and inserted anew"])
def test_DJ_17_a_grant_set_back_to_what_was_proved_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime, cause: str
) -> None:
    """The process has cached exactly these terms: only the log, read again, says they ended."""
    before = Grant.objects.filter(pk=approved(agent, service_provider, now=now).pk).values().get()
    assert agent.call("POST", "/v1/tokens", {"grant_id": str(before["id"])}).status_code == 201
    grant = Grant.objects.get()
    if cause == "suspended":
        suspend_grant(grant=grant, actor=TESTER, now=now)
        Grant.objects.update(**before)
    else:
        revoke_grant(grant=grant, actor=TESTER, now=now)
        Token.objects.all().delete()
        Grant.objects.all().delete()
        # As the trigger requires.
        Grant.objects.create(**before | {"status": Grant.Status.PENDING})
        Grant.objects.update(**before)
    Token.objects.all().delete()
    stands_refused(agent, Grant.objects.get())


def test_DJ_17_of_two_suspensions_one_resumed_brings_nothing_back(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    suspend_grant(grant=grant, actor=TESTER, now=now, cause=Grant.SuspensionCause.RECOVERY)
    suspend_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    resume_grant(grant=grant, actor=TESTER, now=now, by_admin=True)
    assert grant.status == Grant.Status.SUSPENDED
    Grant.objects.update(status=Grant.Status.APPROVED, suspension_cause="")
    stands_refused(agent, grant)


def test_DJ_17_a_receipt_by_a_key_that_is_not_ours_gives_no_token(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    own = LocalSigner(PrivateKey.generate("EdDSA"))
    Key.objects.filter(purpose="receipt").update(public_jwk=own.public.jwk)
    assert_refused(issue(agent, grant), 400, "invalid_grant")


def test_DJ_17_a_disabled_receipt_key_ends_at_once_what_it_signed(
    agent: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    assert issue(agent, grant).status_code == 201
    state = token_state(Token.objects.get().jti)
    key = Key.objects.get(purpose="receipt")
    assert (state.refusal(now), state.receipt_kid) == (None, key.kid)
    rotate_key(purpose="receipt", actor=TESTER, now=now)
    assert issue(agent, grant).status_code == 201
    disable_key(kid=key.kid, actor=TESTER, now=now, even_last=True)
    assert_refused(issue(agent, grant), 400, "invalid_grant")
    assert token_state(state.token.jti).refusal(now) == "grant_inactive"
    # Signed again by the next key, it is valid again.
    suspend_grant(grant=grant, cause=Grant.SuspensionCause.RECOVERY, actor=TESTER, now=now)
    with time_machine.travel(now + PUBLISHED_BEFORE_USE):
        approve(grant, alice, now=now)
    assert issue(agent, grant).status_code == 201


def test_receipts_are_read_once_for_each_version_of_a_grant(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)

    def reads() -> int:
        with CaptureQueriesContext(connection) as queries:
            assert issue(agent, grant).status_code == 201
        return sum("approvals_receipt" in each["sql"] for each in queries)

    assert [reads(), reads()] == [1, 0]
    suspend_grant(grant=grant, actor=TESTER, now=now)
    resume_grant(grant=grant, actor=TESTER, now=now)
    assert [reads(), reads()] == [1, 0]


def test_where_receipts_cannot_be_read_no_token_is_given(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = approved(agent, service_provider, now=now)
    agent.client.raise_request_exception = False
    with transaction.atomic():
        execute("ALTER TABLE approvals_receipt RENAME TO elsewhere")
        assert issue(agent, grant).status_code >= 500
        transaction.set_rollback(True)
    assert not Token.objects.exists()


def test_DJ_17_the_log_names_the_grant_once_and_not_at_each_try(
    agent: AgentClient,
    alice: Human,
    service_provider: ServiceProvider,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
) -> None:
    grant = pending(agent, service_provider, now=now)
    set_approved(grant, alice, now)
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert_refused(issue(agent, grant), 400, "invalid_grant")
    [line] = [line for line in caplog.messages if str(grant.pk) in line]
    assert "no signed approval covers its terms" in line


def test_proved_grants_cache_is_bounded_and_evicts_least_recently_used(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    assert BOUND <= 100_000
    every = []
    for _ in range(3):
        grant = Grant.objects.select_related("agent", "service_provider").get(
            pk=approved(agent, service_provider, now=now).pk
        )
        terms = terms_of(grant, grant.agent, grant.service_provider, is_sealed=True)
        assert terms is not None
        every.append(terms)
    memory = GrantReceiptCache(bound=2)

    def reads(index: int) -> int:
        with CaptureQueriesContext(connection) as queries:
            assert memory.proofs([every[index]], disabled_keys=0).keys() == {every[index]}
        return sum("approvals_receipt" in each["sql"] for each in queries)

    assert [reads(0), reads(1), reads(0), reads(2), reads(0), reads(1)] == [1, 1, 0, 1, 0, 1]


def test_a_grant_that_is_not_approved_is_not_looked_up(
    agent: AgentClient, service_provider: ServiceProvider, now: datetime
) -> None:
    grant = pending(agent, service_provider, now=now)
    assert terms_of(grant, grant.agent, grant.service_provider, is_sealed=True) is None
    with CaptureQueriesContext(connection) as queries, pytest.raises(InvalidGrantError):
        issue_token(agent=agent.agent(), grant_id=str(grant.pk), actor=TESTER, now=now)
    assert not any("approvals_receipt" in each["sql"] for each in queries)
