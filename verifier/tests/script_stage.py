"""Calls to the Redis scripts with named arguments, and access to what they wrote."""

import json
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from agentauth.protocol.usage_counters import Rate
from tests.redis_servers import Cluster, Server
from verifier.stores import lua_scripts, redis_keys
from verifier.stores.lua_scripts import Reply, read_reply
from verifier.stores.redis_probe import RedisProbe
from verifier.stores.redis_py_client import sync_client
from verifier.stores.redis_servers_for_threads import SyncServers

NOW = 1_764_118_000_123_457
BASE = json.dumps({"id": "an event", "data": {"action": None}}).encode()
MAC = b"0123456789abcdef"
GRANT = uuid.UUID("018f3b1e-0000-7000-8000-0000000000f7")
SHARD = 7
RATE = Rate(per_minute=7, burst=3)


class Stage:
    """One shard, epoch 1, and a grant with a rate in it. `client` may do everything."""

    def __init__(self, url: str, client: Redis | RedisCluster) -> None:
        self.servers = SyncServers(url)
        self.client: Any = client
        self.proofs = 0

    def judge(self, **given: Any) -> Reply:
        return read_reply(
            self.servers.evaluate(
                lua_scripts.JUDGE, SHARD, self.keys(given), self.args(**given), deadline=5
            )
        )

    def keys(self, given: dict[str, Any]) -> list[bytes]:
        self.proofs += 1
        jti = given.pop("jti", f"proof {self.proofs}")
        return [
            redis_keys.epoch_key(SHARD),
            redis_keys.proof_key(SHARD, "jkt", jti),
            redis_keys.rate_key(SHARD, GRANT),
            redis_keys.events_key(SHARD),
            redis_keys.count_key(SHARD),
        ]

    def args(
        self,
        *,
        epoch: int = 1,
        ttl: int = 125_000,
        mode: str = "yes",
        now: int = NOW,
        rate: Rate | None = RATE,
        floor: int = 0,
        bound: int = 1000,
        acts: bool = True,
        apart: int = 10**15,
        mark: bytes = b"",
        told: bytes = b"",
        outranks: bool = False,
    ) -> list[bytes | str | int]:
        interval, tolerance = (rate.interval_us, rate.tolerance_us) if rate else (0, 0)
        counts = acts and ttl > 0
        judged: list[bytes | str | int] = [
            epoch,
            ttl,
            mode,
            now,
            interval,
            tolerance,
            floor,
            BASE,
            bound,
        ]
        more: tuple[bytes | int, ...] = (MAC, told, b"1" if outranks else b"")
        if mode == "hold":
            more = (20_000_000, 60_000_000)
        return [*judged, int(counts), int(acts), apart, 25_000, mark, *more]

    def give_back(self, held: Reply, *, now: int = NOW, epoch: int = 1, rate: Rate = RATE) -> Reply:
        keys = [redis_keys.epoch_key(SHARD), redis_keys.rate_key(SHARD, GRANT)]
        args = [epoch, rate.interval_us, held.tat_us or 0, held.before_us or 0, now]
        return read_reply(
            self.servers.evaluate(lua_scripts.GIVE_BACK, SHARD, keys, args, deadline=5)
        )

    def note(self, *, epoch: int = 1, bound: int = 1000) -> Reply:
        keys = [
            redis_keys.epoch_key(SHARD),
            redis_keys.events_key(SHARD),
            redis_keys.count_key(SHARD),
        ]
        return read_reply(
            self.servers.evaluate(
                lua_scripts.NOTE, SHARD, keys, [epoch, BASE, bound, MAC], deadline=5
            )
        )

    def tat(self) -> int | None:
        held = self.client.get(redis_keys.rate_key(SHARD, GRANT))
        return None if held is None else int(held)

    def events(self) -> list[dict[bytes, bytes]]:
        return [entry for _, entry in self.client.xrange(redis_keys.events_key(SHARD))]

    def outcomes(self) -> str:
        return "".join(entry[b"o"].decode() for entry in self.events())

    def everything(self) -> dict[bytes, bytes]:
        """All keys with their values."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}


@pytest.fixture
def stage(
    redis_servers_running: Server | Cluster, redis_url: str, settings: Any
) -> Iterator[Stage]:
    """Epoch 1, begun on empty servers."""
    settings.REDIS_URL = redis_servers_running.url
    client = sync_client()
    settings.REDIS_URL = redis_url
    stage = Stage(redis_url, client)
    RedisProbe().mark(1)
    yield stage
    stage.servers.close()
    client.close()
