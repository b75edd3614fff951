"""Decisions as the verifier process writes them to Redis, for tests of the outbox."""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Self

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from audit import kinds
from audit.models import Event
from audit.new_ids import new_id
from audit.services import seal_audit
from audit.verify.verification import verify_log
from registry.models import Grant
from tests import redis_servers
from tests.oracle import counters
from verifier.stores.redis_keys import events_key
from verifier.stores.stream_entry_macs import mac_of
from verifier.tests.scene import LOOK, Scene


def encoded(base: object) -> bytes:
    return json.dumps(base).encode()


def decided(grant: Grant, /, **more: Any) -> dict[str, Any]:
    """The base JSON of a yes to reading, with all members that a verifier writes, and `more`."""
    base: dict[str, Any] = {
        "id": str(new_id()), "at": 1_795_000_000_000_000, "rid": "request",
        "sp": str(grant.service_provider_id),
        "agent": str(grant.agent_id), "human": str(grant.agent.human_id), "grant": str(grant.pk),
        "jti": "j",
        "kind": "allowed", "error": None, "reason": None, "data": {"action": LOOK},
        "capability": "read:calendar",
    }  # fmt: skip
    return base | more


def proved(base: bytes) -> dict[str, bytes]:
    """The fields of an entry with a valid MAC of its writer."""
    return {"b": base, "m": mac_of(base)}


class OneStream:
    """Stands for Redis with one entry in its first shard, for tests without a server."""

    def __init__(self, base: bytes) -> None:
        self.entries = [
            (b"1-1", {b"e": b"1", b"n": b"1", b"o": b"a", b"b": base, b"m": mac_of(base)})
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def xrange(self, name: bytes, *, count: int) -> list[Any]:
        return self.entries[:count] if b"{00}" in name else []

    def xtrim(self, name: bytes, *, minid: str, approximate: bool) -> None:
        assert (minid, approximate) == ("1-2", False)
        self.entries = []


@pytest.fixture(scope="session")
def redis_server() -> Iterator[redis_servers.Server]:
    with redis_servers.server() as server:
        yield server


@pytest.fixture
def redis(redis_server: redis_servers.Server) -> Iterator[Redis]:
    """One empty server."""
    with redis_server.client() as client:
        client.flushall()
        yield client


class Verifier:
    """Writes what the verifier process writes for one grant in one shard."""

    def __init__(self, redis: Redis | RedisCluster, place: Scene, shard: int = 0) -> None:
        self.redis, self.place, self.shard, self.epoch, self.number = redis, place, shard, 1, 0

    def write(self, outcome: str = "a", base: object = None, **more: Any) -> str:
        """Write one entry and return the id of its event."""
        self.number += 1
        made = decided(self.place.grant, **more) if base is None else base
        text = made if isinstance(made, bytes) else encoded(made)
        self.put(e=self.epoch, n=self.number, o=outcome, **proved(text))
        return str(made["id"]) if isinstance(made, dict) else ""

    def put(self, **fields: Any) -> None:
        pairs = [part for pair in fields.items() for part in pair]
        self.redis.execute_command("XADD", events_key(self.shard), "*", *pairs)  # type: ignore[no-untyped-call]  # redis-py's own


@pytest.fixture
def verifier(redis: Redis, place: Scene) -> Verifier:
    return Verifier(redis, place)


def logged_decisions() -> list[str]:
    events = Event.objects.filter(kind__startswith="verifier.decision.").order_by("id")
    return [str(pk) for pk in events.values_list("pk", flat=True)]


def losses() -> list[dict[str, Any]]:
    events = Event.objects.filter(kind=kinds.DECISIONS_LOST)
    found: list[dict[str, Any]] = [{"reason": event.reason} | event.data for event in events]
    return sorted(found, key=lambda each: int(each["first"]))


def assert_whole(now: datetime) -> None:
    """Assert that counters equal events, and that the log proves itself."""
    seal_audit(now=now)
    assert verify_log().ok
    assert list(counters(list(Event.objects.filter(kind=kinds.DECISION_ALLOWED)))) == []
