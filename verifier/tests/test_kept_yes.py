"""A process keeps a yes only while nothing in it can change, and for the same request only."""

import json
import tracemalloc
import uuid
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from agentauth.protocol.capability import Action, parse_action
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.usage_counters import microseconds
from audit.services import Actor
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.token_state import TokenState
from verifier.requests import _action
from verifier.services.cached_token import CachedToken, known_of
from verifier.services.replay_epochs import ReplayEpoch
from verifier.stores import Permit, StoreCall, redis_decisions
from verifier.stores.lua_scripts import Code, Reply
from verifier.stores.redis_decisions import MOST_YESES, AllowTemplate, conclude, plan_light_decision

NOW = datetime(2026, 11, 26, 12, 0, 0, 250_000, tzinfo=UTC)
HOUR, INSTANT = timedelta(hours=1), timedelta(microseconds=1)
READ, WRITE = Action("read", "calendar"), Action("write", "calendar")


@pytest.fixture(autouse=True)
def _in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redis_decisions, "check_in_time", lambda _call: None)


def known(*, envelope: Mapping[str, Any] | None = None, **changed: Any) -> CachedToken:
    """A token that may read, for an hour; `changed` replaces columns, such as `agent_status`."""
    return known_of(known_rows(envelope=envelope, **changed))


def known_rows(*, envelope: Mapping[str, Any] | None = None, **changed: Any) -> TokenState:
    human = Human(id=uuid.uuid4(), status=Human.Status.ACTIVE)
    agent = Agent(
        id=uuid.uuid4(),
        name="A",
        status=Agent.Status.ACTIVE,
        human=human,
        jkt="k",
        expires_at=NOW + HOUR,
    )
    provider = ServiceProvider(id=uuid.uuid4(), status=ServiceProvider.Status.ACTIVE)
    grant = Grant(
        id=uuid.uuid4(),
        status=Grant.Status.APPROVED,
        version=1,
        agent=agent,
        service_provider=provider,
        valid_until=NOW + HOUR,
        capabilities=[{"type": "read", "resource": "calendar"}],
        envelope=envelope or {"max_requests_per_minute": 60, "max_burst": 10},
    )
    token = Token(jti="t", jkt="k", grant=grant, grant_version=1, expires_at=NOW + HOUR)
    rows = {"token": token, "grant": grant, "agent": agent, "human": human, "provider": provider}
    for name, value in changed.items():
        row, _, column = name.partition("_")
        setattr(rows[row], column, value)
    return TokenState(token, grant, agent, human, provider, receipt_kid="r")


def call(held: CachedToken, **more: Any) -> StoreCall:
    claims = TokenClaims(
        "t", "s", str(held.agent.id), "k", held.grant_id, 1, 0, 2**33, "", (), online=True
    )
    asked = StoreCall(
        service_provider_id=held.service_provider_id,
        claims=claims,
        proof_jkt="k",
        proof_jti=str(uuid.uuid4()),
        spent_until=int((NOW + HOUR).timestamp()),
        action=READ,
        operation_key=None,
        dry_run=False,
        actor=Actor("service_provider", str(held.service_provider_id), 'a "request"'),
        now=NOW,
        replay_epoch=ReplayEpoch(1, "redis", frozenset(), NOW),
    )
    return replace(asked, **more)


def event(made: redis_decisions.LightDecision) -> dict[str, Any]:
    read = json.loads(
        next(each for each in made.called[2] if isinstance(each, bytes) and each[:1] == b"{")
    )
    assert isinstance(read, dict)
    return read


def test_same_question_reuses_the_yes_with_its_own_event_and_answer() -> None:
    held = known()
    first = call(held)
    second = replace(
        first, now=NOW + timedelta(seconds=30), actor=replace(first.actor, request_id="other")
    )
    plans = [plan_light_decision(each, held) for each in (first, second)]
    assert plans[0].verdict is plans[1].verdict
    events = [event(made) for made in plans]
    assert [each["id"] for each in events] == [made.event_id for made in plans]
    assert [each["rid"] for each in events] == ['a "request"', "other"]
    assert [each["at"] for each in events] == [microseconds(first.now), microseconds(second.now)]
    told = []
    for each, made in zip((first, second), plans, strict=True):
        permit = conclude(
            each, held, made, Reply(Code.OK, microseconds(NOW) + 5_000_000, 0, 1, None)
        )
        assert isinstance(permit, Permit)
        told.append(permit.answer)
    assert [each["decision_id"] for each in told] == [made.event_id for made in plans]
    expires_in = first.claims.expires_at - int(NOW.timestamp())
    assert [each["expires_in"] for each in told] == [expires_in, expires_in - 30]
    assert [each["limits"]["rate_remaining"] for each in told] == [5, 10]


def test_another_action_or_a_rehearsal_is_judged_by_itself() -> None:
    held = known()
    asked = call(held)
    yes = plan_light_decision(asked, held).verdict
    assert isinstance(plan_light_decision(replace(asked, action=WRITE), held).verdict, Refuse)
    arguments = Action("read", "calendar", arguments={"day": "monday"})
    assert plan_light_decision(replace(asked, action=arguments), held).verdict is not yes
    assert event(plan_light_decision(replace(asked, dry_run=True), held))["kind"] == "rehearsed"
    assert event(plan_light_decision(asked, held))["kind"] == "allowed"


# A constraint, an allowed argument, and one that is equal in Python but not in the protocol.
ALIKE: list[tuple[dict[str, Any], Any, Any]] = [
    ({"eq": 1}, 1, True),
    ({"not_in": [True]}, 1, True),
    ({"max": 100}, 0, False),
    ({"eq": False}, False, 0),
]


@pytest.mark.parametrize(("constraint", "good", "bad"), ALIKE)
def test_yes_for_the_number_one_does_not_cover_true(
    constraint: dict[str, Any], good: Any, bad: Any
) -> None:
    held = known(
        grant_capabilities=[
            {"type": "read", "resource": "calendar", "constraints": {"n": constraint}}
        ]
    )
    asked = call(held)
    right, wrong = (
        replace(asked, action=Action("read", "calendar", arguments={"n": n})) for n in (good, bad)
    )
    for each in (wrong, right, wrong):
        verdict = plan_light_decision(each, held).verdict
        assert isinstance(verdict, AllowTemplate if each is right else Refuse), verdict
    assert right.action != wrong.action


def test_no_yes_is_kept_with_what_an_agent_may_make_as_long_as_it_likes() -> None:
    held = known()
    asked = call(held)
    plan_light_decision(
        replace(asked, action=Action("read", "calendar", arguments={"note": "a" * 60_000})), held
    )
    assert held.yeses == {}
    plan_light_decision(asked, held)
    assert [*held.yeses] == [READ]


def test_claims_read_again_do_not_share_a_yes() -> None:
    held = known()
    assert (
        plan_light_decision(call(held), held).verdict
        is not plan_light_decision(call(held), held).verdict
    )


def test_time_takes_a_kept_yes_away() -> None:
    days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
    window = {"days": days, "start": "09:00", "end": "12:30", "zone": "UTC"}
    for held, later in (
        (known(), HOUR),
        (known(envelope={"allowed_time_windows": [window]}), HOUR * 3 / 4),
    ):
        asked = call(held)
        assert isinstance(plan_light_decision(asked, held).verdict, AllowTemplate)
        assert isinstance(
            plan_light_decision(replace(asked, now=NOW + later), held).verdict, Refuse
        )


def test_no_token_keeps_many() -> None:
    held = known()
    asked = call(held)
    for number in range(MOST_YESES + 3):
        plan_light_decision(replace(asked, action=Action("read", f"calendar/{number}")), held)
    assert len(held.yeses) == MOST_YESES


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"token_revoked_at": NOW}, "revoked"),
        ({"token_jkt": "another"}, "revoked"),
        ({"grant_status": Grant.Status.SUSPENDED}, "grant_inactive"),
        ({"grant_version": 2}, "grant_inactive"),
        ({"grant_valid_until": None}, "grant_inactive"),
        ({"provider_status": ServiceProvider.Status.SUSPENDED}, "grant_inactive"),
        ({"agent_status": Agent.Status.SUSPENDED}, "agent_inactive"),
        ({"human_status": Human.Status.SUSPENDED}, "human_inactive"),
    ],
)
def test_what_may_not_act_is_good_until_never(changed: dict[str, Any], reason: str) -> None:
    held = known(**changed)
    assert held.refusal(NOW) == reason


def test_what_may_act_may_until_the_first_of_its_ends() -> None:
    for name, reason in (
        ("grant_valid_until", "grant_inactive"),
        ("agent_expires_at", "agent_inactive"),
    ):
        changed: dict[str, Any] = {name: NOW + HOUR / 2}
        held = known(**changed)
        assert held.refusal(NOW + HOUR / 2 - INSTANT) is None
        assert held.refusal(NOW + HOUR / 2) == reason


def test_an_action_of_texts_is_made_once_and_any_other_each_time() -> None:
    plain = {"type": "read", "resource": "calendar"}
    assert _action(dict(plain)) is _action(dict(plain))
    assert _action({"type": "read", "resource": "calendar", "arguments": {"a": 1}}).arguments == {
        "a": 1
    }
    long = {"type": "read", "resource": "a" * 300}
    assert _action(dict(long)) == parse_action(long)
    assert _action(dict(long)) is not _action(dict(long))


def test_what_is_known_of_a_token_takes_little_memory() -> None:
    """Without rows, and with terms that grants share: about 2 kB, twice that with a kept yes."""
    rows = [known_rows() for _ in range(300)]
    tracemalloc.start()
    try:
        held = [known_of(each) for each in rows]
        for each in held:
            plan_light_decision(call(each), each)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(held[0].yeses) == 1
    assert taken / len(held) < 5_000
