"""The contract of `verifier.stores`, for the database, Redis, Valkey and a cluster of three."""

from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from random import Random
from typing import Any, cast

import pytest
from django.conf import settings
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection
from django.utils import timezone

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import IdempotencyMismatchError, TemporarilyUnavailableError
from agentauth.protocol.usage_counters import Rate, microseconds
from audit import kinds
from audit.models import Event
from audit.tests.event_openings import opened
from kms.services import verification_keys
from registry.services.agents import suspend_agent
from registry.services.grants import revoke_grant
from registry.services.nonces import nonces_of
from registry.services.tokens import revoke_token
from tests import endpoint_modes, receipts, redis_servers
from tests.oracle import counters as owed
from verifier.answers import body_of
from verifier.credential_checks import prepare
from verifier.models import Confirmation, GrantLedger
from verifier.requests import parse_verify_request
from verifier.services import presence_leases, replay_cache_lease, replay_epochs
from verifier.stores import (
    EarlyRefusal,
    Permit,
    ProviderKey,
    StoreCall,
    StoredAnswer,
    redis_decisions,
)
from verifier.stores.database_decisions import decide_one
from verifier.stores.lua_scripts import MAX_STREAM
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_servers_for_threads import SyncServers
from verifier.tests.calls import decided
from verifier.tests.scene import LOOK, PAY, READ, SYSTEM, Scene, counters, key, pay, scene

pytestmark = pytest.mark.django_db(transaction=True)

BUDGET = {"value": "10.00", "currency": "EUR", "period": "total", "zone": "UTC"}


@dataclass
class Kept:
    """A store, and a way to see all events that it wrote."""

    apply: Callable[[StoreCall], Any]
    redis: bool

    def said(self, outcome: str = "success") -> int:
        if self.redis:
            endpoint_modes.drain_redis_to_log()
        decisions = Event.objects.filter(kind__startswith="verifier.decision.", outcome=outcome)
        return decisions.count()


@pytest.fixture(scope="module")
def started() -> Iterator[Callable[[str], redis_servers.Server | redis_servers.Cluster]]:
    """Each kind of Redis, started on first use."""
    with ExitStack() as stack:

        @cache
        def of(kind: str) -> redis_servers.Server | redis_servers.Cluster:
            made: Any = (
                redis_servers.cluster()
                if kind == "cluster"
                else redis_servers.server(f"{kind}-server")
            )
            return cast("redis_servers.Server | redis_servers.Cluster", stack.enter_context(made))

        yield of


_REDIS = [pytest.param(kind, marks=pytest.mark.redis) for kind in ("redis", "valkey", "cluster")]


@pytest.fixture(params=["database", *_REDIS])
def kept(
    request: pytest.FixtureRequest, started: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Kept]:
    if request.param == "database":
        yield Kept(decide_one, redis=False)
        return
    running = started(request.param)
    for node in running.nodes:
        node.client().flushall()
    monkeypatch.setattr(settings, "REDIS_URL", running.registry_url)
    with endpoint_modes.use_redis_replay_cache(running.registry_url):
        yield Kept(decided, redis=True)


def decisions() -> list[Event]:
    return list(Event.objects.filter(kind__startswith="verifier.decision."))


def prepared(place: Scene, action: dict[str, Any] | None, **more: Any) -> StoreCall | EarlyRefusal:
    """A request after the checks that need no store."""
    now, replay_epoch = timezone.now(), replay_cache_lease.LEASE.current()
    return prepare(
        parse_verify_request(place.body(action, **more)),
        service_provider=place.provider,
        keys=verification_keys(purpose="token", now=now),
        replay_epoch=replay_epoch,
        nonces=nonces_of(replay_epoch.nonce_server(str(place.provider.pk)), now),
        nonce_required=False,
        actor=SYSTEM,
        now=now,
    )


def call(place: Scene, action: dict[str, Any] | None = LOOK, **more: Any) -> StoreCall:
    """A call that reaches the store."""
    made = prepared(place, action, **more)
    assert isinstance(made, StoreCall)
    return made


def payment(place: Scene, value: str = "1.00", **more: Any) -> StoreCall:
    return call(place, pay(value), idempotency_key=key(), **more)


def words(outcome: Any) -> str:
    if isinstance(outcome, Refuse):
        return outcome.reason or outcome.error
    if isinstance(outcome, StoredAnswer):
        return "recalled"
    assert isinstance(outcome, Permit)
    return "repeated" if outcome.repeated else "yes"


def together(kept: Kept, calls: list[StoreCall]) -> "Counter[str]":
    def ask(one: StoreCall) -> str:
        try:
            return words(kept.apply(one))
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        return Counter(pool.map(ask, calls))


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_a_proof_is_spent_once_whatever_follows(kept: Kept, ask: Callable[..., StoreCall]) -> None:
    place = scene(READ, PAY, max_requests_per_minute=600)
    assert together(kept, [ask(place)] * 20) == {"yes": 1, "replayed": 19}
    assert (kept.said(), kept.said("denied")) == (1, 19)
    for event in decisions():
        assert (event.agent_id, event.human_id) == (place.agent.pk, place.human.pk)
        assert event.kind == (
            kinds.DECISION_DENIED if event.outcome == "denied" else kinds.DECISION_ALLOWED
        )
        label = READ if event.data["action"]["type"] == "read" else PAY
        details = opened(event)["details"]
        assert details.get("capability") in {None, f"{label['type']}:{label['resource']}"}
        assert ("capability" in details) is (event.outcome == "success")
    wrong = call(place, {"type": "write", "resource": "calendar"})
    assert [words(kept.apply(wrong)) for _ in range(2)] == ["no_capability", "replayed"]
    dear = payment(place, "501.00")
    assert [words(kept.apply(dear)) for _ in range(2)] == ["constraint", "replayed"]


def test_a_dry_run_leaves_nothing_but_its_event(kept: Kept) -> None:
    place = scene(READ, PAY, max_requests_per_minute=60, max_burst=1)
    token = place.token()
    body = place.body(LOOK, token=token)
    before = counters()
    dry = call(place, LOOK, token=token, proof=body["proof"], dry_run=True)
    for _ in range(3):
        assert words(kept.apply(dry)) == "yes"
    assert kept.said() == 3
    assert {event.kind for event in decisions()} == {kinds.DECISION_REHEARSED}
    assert counters() == before
    # It used neither the proof nor the rate's only use.
    assert words(kept.apply(call(place, LOOK, token=token, proof=body["proof"]))) == "yes"
    assert words(kept.apply(call(place, dry_run=True))) == "rate"


@pytest.mark.parametrize(
    ("envelope", "ask", "expected"),
    [
        ({"max_requests_per_minute": 6, "max_burst": 5}, call, {"yes": 5, "rate": 35}),
        ({"max_requests_per_minute": 6, "max_burst": 5}, payment, {"yes": 5, "rate": 35}),
        ({"max_uses": 7}, call, {"yes": 7, "max_uses": 33}),
        ({"budgets": [BUDGET]}, payment, {"yes": 10, "budget": 30}),
    ],
)
def test_no_limit_is_passed_by_forty_at_once(
    kept: Kept, envelope: dict[str, Any], ask: Callable[..., StoreCall], expected: dict[str, int]
) -> None:
    place = scene(READ, PAY, **envelope)
    token = place.token()
    assert together(kept, [ask(place, token=token) for _ in range(40)]) == expected
    assert (kept.said(), kept.said("denied")) == tuple(expected.values())
    # Counters equal the sum of the events.
    assert list(owed(list(Event.objects.filter(kind=kinds.DECISION_ALLOWED)))) == []
    assert GrantLedger.objects.get().uses == expected["yes"]


def test_a_refusal_changes_no_counter_and_gives_back_what_was_set_aside(kept: Kept) -> None:
    place = scene(READ, PAY, max_requests_per_minute=6, max_burst=2, budgets=[BUDGET])
    for _ in range(4):
        assert words(kept.apply(payment(place, "11.00"))) == "budget"
    assert [words(kept.apply(payment(place))) for _ in range(3)] == ["yes", "yes", "rate"]
    assert GrantLedger.objects.get().uses == 2
    assert kept.said("denied") == 5


def test_an_operation_is_remembered_with_its_debit(kept: Kept) -> None:
    place, operation = scene(PAY, max_requests_per_minute=6, max_burst=2), key()
    calls = [call(place, pay("1.00"), idempotency_key=operation) for _ in range(8)]
    assert Counter(words(kept.apply(each)) for each in calls) == {"yes": 1, "repeated": 7}
    assert words(kept.apply(payment(place))) == "yes"
    assert words(kept.apply(payment(place))) == "rate"


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_no_yes_is_given_in_another_epoch(kept: Kept, ask: Callable[..., StoreCall]) -> None:
    place = scene(READ, PAY)
    mine = ask(place)
    row, _ = replay_epochs.read_or_create_row()
    replay_epochs.end_epoch(
        epoch=row.epoch, for_kind=row.kind, reason="test", actor=SYSTEM, now=timezone.now()
    )
    replay_cache_lease.LEASE._last = None
    with pytest.raises(TemporarilyUnavailableError):
        kept.apply(mine)
    # A light one may be in the log without an answer: the marker in Redis outlives the lease by 1
    # s.
    assert kept.said() <= (kept.redis and ask is call)


@pytest.mark.redis
@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_a_redis_that_forgot_says_nothing(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, ask: Callable[..., StoreCall]
) -> None:
    monkeypatch.setattr(settings, "REDIS_URL", redis_url)
    place = scene(READ, PAY, max_requests_per_minute=600)
    with endpoint_modes.use_redis_replay_cache(redis_url):
        kept = Kept(decided, redis=True)
        RedisProbe().mark(7)
        with pytest.raises(TemporarilyUnavailableError):
            kept.apply(ask(place))
    assert (kept.said(), GrantLedger.objects.exclude(uses=0).count()) == (0, 0)


@pytest.mark.redis
def test_no_yes_is_given_if_no_event_can_be_kept(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_STREAM > 3
    monkeypatch.setattr(settings, "REDIS_URL", redis_url)
    monkeypatch.setattr(redis_decisions, "MAX_STREAM", 3)
    place, servers = scene(READ), SyncServers(redis_url)
    with endpoint_modes.use_redis_replay_cache(redis_url):
        kept = Kept(decided, redis=True)
        calls = [call(place) for _ in range(5)]
        assert [words(kept.apply(each)) for each in calls[:3]] == ["yes"] * 3
        for each in calls[3:]:
            with pytest.raises(TemporarilyUnavailableError):
                kept.apply(each)
        assert kept.said() == 3
        assert words(kept.apply(calls[4])) == "yes"
    servers.close()


def test_the_rate_is_that_of_the_protocol(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random walk in time, with light and durable calls, some refused for another reason."""
    place, random = scene(READ, PAY, max_requests_per_minute=30, max_burst=4), Random(2027)
    rate, token = Rate(30, 4), place.token()
    now, tat = timezone.now(), None
    for _ in range(60):
        now += timedelta(
            microseconds=random.choice((0, 1, 400_000, 1_999_999, 2_000_000, 5_000_000))
        )
        monkeypatch.setattr(timezone, "now", lambda now=now: now)
        kind = random.random()
        one = call(place, token=token) if kind < 0.5 else payment(place, token=token)
        if kind > 0.85:
            assert words(kept.apply(payment(place, "501.00", token=token))) == "constraint"
        at = microseconds(now)
        waits = rate.wait_us(tat, at) > 0
        assert words(kept.apply(one)) == ("rate" if waits else "yes")
        tat = tat if waits else rate.advance(tat, at)


def named(place: Scene, body: bytes = b"1") -> ProviderKey:
    """The service provider's name for a call, and its body."""
    return ProviderKey(digest=sha256(place.provider.pk.bytes), body_sha256=sha256(body))


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_a_call_under_its_providers_name_is_judged_once(
    kept: Kept, ask: Callable[..., StoreCall]
) -> None:
    place = scene(READ, PAY, max_requests_per_minute=6, max_burst=1)
    mine = replace(ask(place), provider_key=named(place))
    assert together(kept, [mine] * 8) == {"yes": 1, "recalled": 7}
    assert (kept.said(), kept.said("denied")) == (1, 0)
    other = replace(mine, provider_key=named(place, b"2"))
    if kept.redis and ask is call:
        # Redis finds a call by its proof alone.
        assert words(kept.apply(other)) == "replayed"
    else:
        with pytest.raises(IdempotencyMismatchError):
            kept.apply(other)
    # A yes is repeated only while the token may still act.
    revoke_grant(grant=place.grant, actor=SYSTEM, now=timezone.now())
    told = kept.apply(mine)
    assert (told.body if isinstance(told, StoredAnswer) else body_of(told))[
        "reason"
    ] == "grant_inactive"


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_a_no_under_its_providers_name_stays_one(kept: Kept, ask: Callable[..., StoreCall]) -> None:
    place = scene(READ, PAY, max_requests_per_minute=6, max_burst=1)
    assert words(kept.apply(ask(place))) == "yes"
    late = replace(ask(place), provider_key=named(place))
    assert words(kept.apply(late)) == "rate"
    assert [words(kept.apply(late)) for _ in range(2)] == ["recalled"] * 2
    assert (kept.said(), kept.said("denied")) == (1, 1)


def test_what_ends_before_the_store_is_on_record_once(kept: Kept) -> None:
    place = scene(READ)
    refusal = prepared(place, LOOK, proof="x")
    assert isinstance(refusal, EarlyRefusal)
    assert words(decide_one(refusal)) == "malformed"
    under_a_name = replace(refusal, provider_key=named(place))
    assert [words(decide_one(under_a_name)) for _ in range(3)] == [
        "malformed",
        "recalled",
        "recalled",
    ]
    assert (kept.said(), kept.said("denied")) == (0, 2)


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_call_that_is_no_longer_allowed_gets_the_reason(
    kept: Kept, ask: Callable[..., StoreCall]
) -> None:
    place = scene(READ, PAY)
    mine, other = ask(place), ask(place)
    before = counters()
    revoke_token(jti=mine.claims.jti, actor=SYSTEM, now=timezone.now())
    assert words(kept.apply(mine)) == "revoked"
    # The proof is spent, whatever follows.
    assert words(kept.apply(mine)) == "replayed"
    suspend_agent(agent=place.agent, actor=SYSTEM, now=timezone.now())
    assert words(kept.apply(other)) == "agent_inactive"
    assert (kept.said(), kept.said("denied")) == (0, 3)
    assert counters() == before


def test_a_human_is_asked_once_and_their_yes_is_good_once(kept: Kept) -> None:
    place = scene(PAY, confirm_above={"value": "100.00", "currency": "EUR"})
    operation = key()

    def dear() -> Permit | Refuse:
        outcome = kept.apply(call(place, pay("150.00"), idempotency_key=operation))
        assert isinstance(outcome, Permit | Refuse)
        return outcome

    asked = [dear() for _ in range(3)]
    assert [words(each) for each in asked] == ["confirm_above"] * 3
    [row] = Confirmation.objects.all()
    assert {each.confirmation_id for each in asked if isinstance(each, Refuse)} == {row.pk}
    receipts.confirm(row, place.human, actor=SYSTEM, now=timezone.now())
    assert [words(dear()) for _ in range(2)] == ["yes", "repeated"]
    row.refresh_from_db()
    assert row.status == Confirmation.Status.CONSUMED
    assert words(kept.apply(payment(place, "150.00"))) == "confirm_above"


@pytest.mark.parametrize("ask", [call, payment], ids=["light", "durable"])
def test_a_human_who_must_be_there_is_looked_for_each_time(
    kept: Kept, ask: Callable[..., StoreCall]
) -> None:
    place = scene(READ, PAY, requires_human_online=True)
    assert words(kept.apply(ask(place))) == "human_offline"
    session = SessionStore()
    session.create()
    presence_leases.begin(
        human=place.human, session_key=str(session.session_key), actor=SYSTEM, now=timezone.now()
    )
    assert words(kept.apply(ask(place))) == "yes"
    presence_leases.end(human=place.human, actor=SYSTEM, now=timezone.now())
    assert words(kept.apply(ask(place))) == "human_offline"
