"""Claiming an agent: the link, the short code, five failures, one owner."""

from datetime import datetime, timedelta

import pytest

from agentauth.protocol.errors import (
    ExpiredError,
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    TooManyPendingGrantsError,
)
from audit.models import Event
from registry.models import Agent, Grant, Human, ServiceProvider
from registry.services.agent_claims import check_claim_code, claim_agent, find_claim
from registry.services.agents import revoke_agent
from registry.services.enrolment_codes import create_enrolment_code
from registry.services.grant_requests import withdraw_grant
from registry.services.humans import suspend_human
from registry.tests.cast import (
    TESTER,
    AgentClient,
    assert_refused,
    claim,
    claim_link,
    enrolled,
    pending,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def stray(db: None) -> AgentClient:
    """An unclaimed agent."""
    client = AgentClient()
    assert client.register().status_code == 201
    return client


def secret_of(client: AgentClient) -> str:
    return claim_link(client.agent())[0].rstrip("/").rsplit("/", 1)[1]


def test_the_link_finds_the_agent_for_an_hour(stray: AgentClient, now: datetime) -> None:
    assert find_claim(secret_of(stray), now=now) == stray.agent()
    with pytest.raises(ExpiredError):
        find_claim(secret_of(stray), now=now + timedelta(hours=1, seconds=5))


@pytest.mark.parametrize(
    "change", ["truncated", "other_agent", "wrong", "nonsense", "empty", "not_base64"]
)
def test_a_link_we_did_not_make_finds_nothing(
    stray: AgentClient, now: datetime, change: str
) -> None:
    other = AgentClient()
    other.register()
    secret = secret_of(stray)
    tried = {
        "truncated": secret[:-1],
        # One agent's id with another's secret.
        "other_agent": secret_of(other)[:21] + secret[21:],
        "wrong": secret[:-4] + "AAAA",
        "nonsense": "A" * 43,
        "empty": "",
        "not_base64": "ä" * 43,
    }
    with pytest.raises(NotFoundError):
        find_claim(tried[change], now=now)


def test_the_right_code_lets_a_human_claim(stray: AgentClient, alice: Human, now: datetime) -> None:
    code = claim_link(stray.agent())[1]
    typed = f" {code[:4].lower()}-{code[4:]} "
    check_claim_code(agent=stray.agent(), code=typed, actor=TESTER, now=now)
    claim(stray, alice, now=now)
    assert (stray.agent().status, stray.agent().human) == ("active", alice)
    assert Event.objects.get(kind="registry.agent.claimed").human_id == alice.pk
    with pytest.raises(NotFoundError):
        find_claim(secret_of(stray), now=now)


def test_five_wrong_codes_end_the_link(stray: AgentClient, alice: Human, now: datetime) -> None:
    secret, (_, code) = secret_of(stray), claim_link(stray.agent())
    for _ in range(5):
        with pytest.raises(InvalidRequestError) as caught:
            check_claim_code(agent=stray.agent(), code="WRONGWRO", actor=TESTER, now=now)
        assert caught.value.reason == "claim_code"
    with pytest.raises(ExpiredError):
        check_claim_code(agent=stray.agent(), code=code, actor=TESTER, now=now)
    with pytest.raises(ExpiredError):
        find_claim(secret, now=now)
    with pytest.raises(InvalidStateError):
        claim(stray, alice, now=now)
    assert Event.objects.filter(kind="registry.agent.claim_failed", reason="locked").count() == 1
    # A new link has new tries; the old one stays ended.
    stray.register()
    assert find_claim(secret_of(stray), now=now) == stray.agent()
    with pytest.raises(NotFoundError):
        find_claim(secret, now=now)


def test_of_two_humans_one_claims(
    stray: AgentClient, alice: Human, bob: Human, now: datetime
) -> None:
    seen = stray.agent()
    claim(stray, alice, now=now)
    with pytest.raises(InvalidStateError):
        claim_agent(agent=seen, human=bob, actor=TESTER, now=now)
    assert stray.agent().human == alice


def test_an_ended_link_a_revoked_agent_and_a_suspended_human_claim_nothing(
    stray: AgentClient, alice: Human, bob: Human, now: datetime
) -> None:
    with pytest.raises(InvalidStateError):
        claim(stray, alice, now=now + timedelta(hours=2))
    suspend_human(human=bob, actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        claim(stray, bob, now=now)
    revoke_agent(agent=stray.agent(), actor=TESTER, now=now)
    with pytest.raises(InvalidStateError):
        claim(stray, alice, now=now)


def test_link_and_code_differ_by_agent_and_number(stray: AgentClient) -> None:
    agent = stray.agent()
    first = claim_link(agent)
    agent.claim_number += 1
    second = claim_link(agent)
    assert first[0] != second[0]
    assert first[1] != second[1]


def test_another_server_secret_makes_another_link(
    stray: AgentClient, settings: pytest.FixtureRequest
) -> None:
    first = claim_link(stray.agent())
    settings.SECRET_KEY = "another"  # type: ignore[attr-defined]
    assert claim_link(stray.agent()) != first


def test_no_link_is_stored(stray: AgentClient) -> None:
    secret, code = secret_of(stray), claim_link(stray.agent())[1]
    row = str(Agent.objects.filter(jkt=stray.jkt).values()) + str(list(Event.objects.values()))
    assert secret not in row
    assert code not in row


def test_unclaimed_agent_has_no_suspended_state(
    stray: AgentClient, service_provider: ServiceProvider
) -> None:
    assert_refused(stray.call("POST", "/v1/tokens", {"grant_id": "x"}), 400, "invalid_grant")


def test_AP_29_a_claim_brings_no_request_beyond_the_humans_twenty(
    stray: AgentClient, alice: Human, service_provider: ServiceProvider, now: datetime
) -> None:
    wish = [{"type": "read", "resource": "calendar/mine"}]
    pending(stray, service_provider, now=now, capabilities=wish)
    others = [enrolled(alice, now=now) for _ in range(4)]
    for number in range(20):
        path = [{"type": "read", "resource": f"calendar/{number}"}]
        pending(others[number // 5], service_provider, now=now, capabilities=path)
    # A person decides, and cannot withdraw.
    with pytest.raises(TooManyPendingGrantsError, match="must decide some first"):
        claim(stray, alice, now=now)
    _, code = create_enrolment_code(human=alice, actor=TESTER, now=now)
    assert_refused(stray.register(code), 429, "too_many_pending_grants")
    assert stray.agent().human is None
    # Deciding one makes room; and an agent that requests nothing needs none.
    withdraw_grant(
        grant=Grant.objects.filter(agent__human=alice).earliest("id"), actor=TESTER, now=now
    )
    claim(stray, alice, now=now)
    asks_nothing = AgentClient()
    asks_nothing.register()
    claim(asks_nothing, alice, now=now)
    assert Grant.objects.waiting(now).filter(agent__human=alice).count() == 20


def test_old_claim_statement_does_not_claim_an_agent_with_new_manifest(
    stray: AgentClient, alice: Human, now: datetime
) -> None:
    seen = stray.agent()
    stray.replace(name="Somebody Else")
    with pytest.raises(InvalidStateError):
        claim_agent(agent=seen, human=alice, actor=TESTER, now=now)
    assert stray.agent().human is None


def test_the_claimed_link_is_found_again_by_its_owner_alone(
    stray: AgentClient, alice: Human, bob: Human, now: datetime
) -> None:
    secret = secret_of(stray)
    claim(stray, alice, now=now)
    assert find_claim(secret, now=now, owner=alice) == stray.agent()
    for owner in (bob, None):
        with pytest.raises(NotFoundError):
            find_claim(secret, now=now, owner=owner)
