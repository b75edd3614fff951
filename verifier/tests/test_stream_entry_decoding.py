"""A decision read back from a stream equals the event that the database store writes for it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.utils import timezone
from redis import Redis

from agentauth.protocol.capability import Capability, parse_capabilities
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.encoding import canonical_json
from audit.log.event_encoding import commitment
from audit.models import Event
from audit.new_ids import new_id
from audit.services import record_many
from audit.tests.event_openings import opened
from verifier.models import StreamCursor
from verifier.services import decision_stream_drain, web_verification
from verifier.stores import (
    EarlyRefusal,
    SpendResult,
    StoreCall,
    lua_scripts,
    redis_keys,
    stream_entry_decoding,
)
from verifier.stores.database_decisions import Outcome, decide_one
from verifier.stores.stream_entry_decoding import UnreadableError, debits, event_of
from verifier.stores.stream_entry_encoding import (
    encode_entry,
    format_fields,
    no_entry,
    shared_members,
)
from verifier.stores.stream_entry_macs import mac_of
from verifier.tests.scene import LOOK, READ, Scene, key, scene
from verifier.tests.streams import decided, encoded

pytestmark = pytest.mark.django_db
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
CALENDAR = parse_capabilities([READ])[0]
# The script's letter, and what was found before it: a refusal, or the capability that allows.
Found = tuple[str, Refuse | Capability | None]
ID = "0192f1c8-0000-7000-8000-000000000001"
NAMED: dict[str, Any] = {"payee": "ACME", "days": 7, "all": True, "text": "ü" * 4_000}


class Listening:
    """Keeps the last decided call."""

    last: StoreCall | EarlyRefusal

    def decide(self, call: StoreCall | EarlyRefusal, spent: SpendResult | None) -> Outcome:
        self.last = call
        return decide_one(call, spent)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Listening:
    listening = Listening()
    monkeypatch.setattr(web_verification, "decide_one", listening.decide)
    return listening


def columns(event: Event) -> dict[str, Any]:
    values: dict[str, Any] = {
        **Event.objects.filter(pk=event.pk).values().get(),
        "data": opened(event),
    }
    return {name: value for name, value in values.items() if name not in {"id", "salt"}}


def allowed(place: Scene) -> Found:
    place.ask(LOOK)
    return "a", CALENDAR


def allowed_without_action(place: Scene) -> Found:
    place.ask()
    return "a", None


def allowed_with_arguments(place: Scene) -> Found:
    place.ask(LOOK | {"arguments": NAMED})
    return "a", CALENDAR


def refused_with_arguments(place: Scene) -> Found:
    place.ask({"type": "write", "resource": "calendar", "arguments": NAMED})
    return "v", Refuse("insufficient_scope", "no_capability")


def bad_proof_with_arguments(place: Scene) -> Found:
    token = place.token()
    place.ask(LOOK | {"arguments": NAMED}, token=token, proof=place.proof(token, method="GET"))
    return "v", Refuse("invalid_dpop_proof", "method")


def no_token_with_arguments(place: Scene) -> Found:
    place.ask(LOOK | {"arguments": NAMED}, token="x", proof="x")
    return "v", Refuse("invalid_token", "malformed")


def rehearsed(place: Scene) -> Found:
    place.ask(LOOK, dry_run=True)
    return "a", CALENDAR


def replayed(place: Scene) -> Found:
    body = place.body(LOOK)
    place.post(body)
    place.post(body)
    return "r", CALENDAR


def too_fast(place: Scene) -> Found:
    for _ in range(2):
        answer = place.ask(LOOK)
    assert answer["reason"] == "rate"
    return "l", CALENDAR


def outside_the_grant(place: Scene) -> Found:
    place.ask({"type": "write", "resource": "calendar"})
    return "v", Refuse("insufficient_scope", "no_capability")


def outside_the_window(place: Scene) -> Found:
    answer = place.ask(LOOK)
    assert answer["error"] == "outside_time_window", answer
    return "v", Refuse("outside_time_window")


def custom_action(place: Scene) -> Found:
    place.ask({"type": "custom", "namespace": "acme", "name": "frob", "resource": "Calendar \\ ü"})
    return "v", Refuse("insufficient_scope", "no_capability")


def bad_proof(place: Scene) -> Found:
    token = place.token()
    place.ask(LOOK, token=token, proof=place.proof(token, method="GET"), idempotency_key=key())
    return "v", Refuse("invalid_dpop_proof", "method")


def no_token(place: Scene) -> Found:
    place.ask(LOOK, token="x", proof="x")
    return "v", Refuse("invalid_token", "malformed")


def revoked(place: Scene) -> Found:
    body = place.body(LOOK)
    place.grant.status = "revoked"
    place.grant.save()
    place.post(body)
    return "v", Refuse("invalid_token", "grant_inactive")


ACTS: list[Callable[[Scene], Found]] = [
    allowed,
    allowed_without_action,
    allowed_with_arguments,
    refused_with_arguments,
    bad_proof_with_arguments,
    no_token_with_arguments,
    rehearsed,
    replayed,
    too_fast,
    outside_the_grant,
    outside_the_window,
    custom_action,
    bad_proof,
    no_token,
    revoked,
]


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("act", ACTS)
def test_the_event_equals_that_of_the_database_s_store(
    act: Callable[[Scene], Found], store: Listening, *, named: bool
) -> None:
    envelope: dict[str, Any] = {"max_requests_per_minute": 1} if act is too_fast else {}
    if act is outside_the_window:
        # A day that is neither today nor tomorrow.
        days = [DAYS[(timezone.now().weekday() + 3) % 7]]
        envelope = {
            "allowed_time_windows": [
                {"days": days, "start": "09:00", "end": "10:00", "zone": "UTC"}
            ]
        }
    place = scene(READ, **envelope)
    outcome, found = act(place)
    by_the_store = Event.objects.filter(kind__startswith="verifier.decision.").latest("id")
    human_id, call = place.human.pk, store.last
    if isinstance(found, Refuse):
        _, entry = no_entry(call, found, human_id if named and call.claims else None)
    else:
        # A yes has read the state, so it always names its human.
        assert isinstance(call, StoreCall)
        _, entry = encode_entry(call, shared_members(call, human_id, found))
    if call.claims is None:
        # Nothing would be kept of them, so they are not in Redis either.
        assert b"ACME" not in entry
        assert format_fields(call) == ()
    # Entries that other tests write by hand have the same members.
    assert json.loads(entry).keys() == decided(place.grant).keys()
    made = event_of(entry, outcome.encode())
    with transaction.atomic():
        record_many(decision_stream_drain._with_humans([made]), now=timezone.now())
    assert columns(Event.objects.get(pk=made.id)) == columns(by_the_store)
    assert debits(made) is (act in {allowed, allowed_with_arguments})


def plain(**more: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "id": str(new_id()), "at": 1_795_000_000_000_000, "rid": "r", "sp": ID, "agent": ID,
        "human": ID, "grant": ID,
        "jti": "j", "kind": "allowed", "error": None, "reason": None, "data": {"action": None},
        "capability": None,
    }  # fmt: skip
    return base | more


@pytest.mark.parametrize(
    "base",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[" * 100_000,
        b"[]",
        b"1",
        {},
        {**plain(), "more": 1},
        {name: value for name, value in plain().items() if name != "human"},
        plain(id=None),
        plain(id="x"),
        plain(at="1"),
        plain(at=1.5),
        plain(at=10**30),
        plain(rid=1),
        plain(rid="x" * 65),
        plain(sp=None),
        plain(agent=[]),
        plain(grant=None),
        plain(jti="\0"),
        plain(jti=0),
        plain(jti=[]),
        plain(rid=[]),
        plain(kind="refused"),
        plain(kind=["allowed"]),
        plain(kind="denied"),
        plain(kind="denied", error=1),
        plain(kind="denied", error="x", reason=[]),
        plain(data=[]),
        plain(data={}),
        plain(data={"action": 1.5}),
        plain(capability=1.5),
    ],
)
def test_malformed_stream_event_is_unreadable(base: Any) -> None:
    with pytest.raises(UnreadableError):
        event_of(base if isinstance(base, bytes) else encoded(base), b"a")


def test_of_data_that_is_alike_each_is_looked_at() -> None:
    """Checked data is cached by its text, so 1, True and 1.0 must not be mixed up."""
    for count, capability in (
        (1, "read:a"),
        (True, "read:a"),
        (1, "read:b"),
        (1, None),
        ("1", None),
    ):
        given: dict[str, Any] = {"action": None, "count": count}
        made = event_of(encoded(plain(data=given, capability=capability)), b"a")
        if made.hidden is not None:
            assert made.hidden.text == canonical_json({"capability": capability})
            given["details"] = commitment({"capability": capability}, made.hidden.salt)
        assert (made.hidden is None) is (capability is None)
        assert made.data.text == canonical_json(given) == canonical_json(made.data.value)
    with pytest.raises(UnreadableError):
        event_of(encoded(plain(data={"action": None, "count": 1.0})), b"a")


def test_two_decisions_that_say_the_same_have_salts_of_their_own() -> None:
    base = encoded(plain(data={"action": READ}, capability="read:calendar"))
    one, other = event_of(base, b"a"), event_of(base, b"a")
    assert one.hidden
    assert other.hidden
    assert one.hidden.salt != other.hidden.salt
    assert one.data.value["details"] != other.data.value["details"]


def test_decisions_with_arguments_do_not_stay_in_memory() -> None:
    before = stream_entry_decoding._data.cache_info()
    for number in range(3):
        base = encoded(plain(data={"action": READ | {"arguments": {"number": number}}}))
        made = event_of(base, b"a")
        assert made.hidden
        assert b"number" in made.hidden.text
        assert b"number" not in made.data.text
    assert stream_entry_decoding._data.cache_info() == before


@pytest.mark.parametrize("outcome", [b"", b"x", b"av", b"A"])
def test_an_outcome_that_no_script_writes_is_unreadable(outcome: bytes) -> None:
    assert event_of(encoded(plain()), b"a")
    with pytest.raises(UnreadableError):
        event_of(encoded(plain()), outcome)


@pytest.mark.redis
def test_what_the_scripts_write_is_read(redis: Redis, place: Scene) -> None:
    """The script's own entries: a yes, a replay, and a refusal made before the store."""
    grant = place.grant
    shard = redis_keys.shard_of(grant.pk)
    keys = [
        make(shard) for make in (redis_keys.epoch_key, redis_keys.events_key, redis_keys.count_key)
    ]
    proof, rate = redis_keys.proof_key(shard, "jkt", "jti"), redis_keys.rate_key(shard, grant.pk)
    redis.set(keys[0], "3")
    judged: list[Any] = [3, 125_000, "yes", 1_795_000_000_000_000, 0, 0, 0]
    for base in (decided(grant), decided(grant)):
        text = encoded(base)
        arguments = [
            *judged,
            text,
            lua_scripts.MAX_STREAM,
            1,
            1,
            10**15,
            25_000,
            b"",
            mac_of(text),
            b"",
            b"",
        ]
        redis.eval(
            lua_scripts.JUDGE.source.decode(), 5, keys[0], proof, rate, keys[1], keys[2], *arguments
        )
    early = decided(grant, kind="denied", error="invalid_token", reason="expired", capability=None)
    text = encoded(early)
    redis.eval(
        lua_scripts.NOTE.source.decode(), 3, *keys, 3, text, lua_scripts.MAX_STREAM, mac_of(text)
    )
    assert decision_stream_drain.drain(redis, now=timezone.now()) == 3
    found = Event.objects.filter(kind__startswith="verifier.").values_list("kind", "reason")
    assert sorted(found, key=str) == [
        ("verifier.decision.allowed", None),
        ("verifier.decision.denied", "expired"),
        ("verifier.decision.denied", "replayed"),
    ]
    assert set(StreamCursor.objects.values_list("epoch", "shard", "number")) == {(3, shard, 3)}
