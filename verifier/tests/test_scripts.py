"""What runs inside Redis: proofs once, rates as the protocol's arithmetic has them, events numbered without a gap."""

import asyncio
import json
import random
import uuid
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from redis import Redis
from redis.cluster import RedisCluster

from agentauth.protocol.errors import InvalidStateError
from agentauth.protocol.limits import Rate
from tests import redis_servers
from verifier.stores import scripts
from verifier.stores.connection import RedisAwayError, Servers
from verifier.stores.scripts import Code, Reply, read_reply
from verifier.stores.sync_connection import SyncServers, sync_client

pytestmark = pytest.mark.redis

NOW = 1_764_118_000_123_457
BASE = json.dumps({"id": "an event", "data": {"action": None}}).encode()
GRANT = uuid.UUID("018f3b1e-0000-7000-8000-0000000000f7")
SHARD = 7
RATE = Rate(per_minute=7, burst=3)


class Stage:
    """The scripts with their arguments by name, and a look at what they wrote."""

    def __init__(self, url: str, client: Redis | RedisCluster) -> None:
        self.servers = SyncServers(url)
        self.client: Any = client
        self.proofs = 0

    def judge(self, **given: Any) -> Reply:
        return read_reply(
            self.servers.evaluate(scripts.JUDGE, SHARD, self.keys(given), self.args(**given), deadline=5)
        )

    def keys(self, given: dict[str, Any]) -> list[bytes]:
        self.proofs += 1
        jti = given.pop("jti", f"proof {self.proofs}")
        return [
            scripts.epoch_key(SHARD),
            scripts.proof_key(SHARD, "jkt", jti),
            scripts.rate_key(SHARD, GRANT),
            scripts.events_key(SHARD),
            scripts.count_key(SHARD),
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
    ) -> list[bytes | str | int]:
        interval, tolerance = (rate.interval_us, rate.tolerance_us) if rate else (0, 0)
        counts = acts and ttl > 0
        return [epoch, ttl, mode, now, interval, tolerance, floor, BASE, bound, int(counts), int(acts)]

    def give_back(self, held: Reply, *, now: int = NOW, epoch: int = 1, rate: Rate = RATE) -> Reply:
        keys = [scripts.epoch_key(SHARD), scripts.rate_key(SHARD, GRANT)]
        args = [epoch, rate.interval_us, held.tat_us or 0, held.before_us or 0, now]
        return read_reply(self.servers.evaluate(scripts.GIVE_BACK, SHARD, keys, args, deadline=5))

    def note(self, *, epoch: int = 1, bound: int = 1000) -> Reply:
        keys = [scripts.epoch_key(SHARD), scripts.events_key(SHARD), scripts.count_key(SHARD)]
        return read_reply(self.servers.evaluate(scripts.NOTE, SHARD, keys, [epoch, BASE, bound], deadline=5))

    def tat(self) -> int | None:
        held = self.client.get(scripts.rate_key(SHARD, GRANT))
        return None if held is None else int(held)

    def events(self) -> list[dict[bytes, bytes]]:
        return [entry for _, entry in self.client.xrange(scripts.events_key(SHARD))]

    def outcomes(self) -> str:
        return "".join(entry[b"o"].decode() for entry in self.events())

    def everything(self) -> dict[bytes, bytes]:
        """All keys with what they hold."""
        return {key: self.client.dump(key) for key in self.client.scan_iter()}


@pytest.fixture
def stage(redis_url: str, settings: Any) -> Iterator[Stage]:
    settings.REDIS_URL = redis_url
    client = sync_client()
    stage = Stage(redis_url, client)
    stage.servers.mark(1)
    yield stage
    stage.servers.close()
    client.close()


def test_EN_4_of_fifty_at_once_with_one_proof_one_passes(redis_url: str, stage: Stage) -> None:
    async def main() -> list[Any]:
        # Each over a connection of its own, as from fifty processes.
        many = [Servers(redis_url) for _ in range(50)]
        for servers in many:
            await servers.ping()
        keys = stage.keys({"jti": "one"})
        calls = [
            servers.evaluate(scripts.JUDGE, SHARD, keys, stage.args(rate=None), deadline=10)
            for servers in many
        ]
        raw = await asyncio.gather(*calls)
        for servers in many:
            servers.close()
        return raw

    replies = [read_reply(raw) for raw in asyncio.run(main())]
    assert sorted(reply.code for reply in replies) == [Code.OK, *[Code.REPLAYED] * 49]
    assert sorted(reply.number for reply in replies) == list(range(1, 51))
    assert sorted(stage.outcomes()) == sorted("a" + "r" * 49)


def test_an_event_carries_its_epoch_number_outcome_and_base(stage: Stage) -> None:
    assert stage.judge() == Reply(Code.OK, NOW + RATE.interval_us, 0, 1, None)
    assert stage.judge(jti="proof 1").code is Code.REPLAYED
    assert stage.judge(mode="no").number == 3
    assert stage.note().number == 4
    assert stage.events() == [
        {b"e": b"1", b"n": str(number).encode(), b"o": letter, b"b": BASE}
        for number, letter in enumerate((b"a", b"r", b"v", b"v"), 1)
    ]


def test_a_proof_stays_spent_whatever_was_judged(stage: Stage) -> None:
    stage.judge(jti="denied", mode="no")
    for _ in range(RATE.burst):
        stage.judge()
    assert stage.judge(jti="too fast").code is Code.RATE
    stage.judge(jti="held", mode="hold")
    for jti in ("denied", "too fast", "held"):
        for mode in ("yes", "no", "hold"):
            assert stage.judge(jti=jti, mode=mode).code is Code.REPLAYED
    # It was refused as a replay, so the verdict that was brought along does not count.
    assert set(stage.outcomes()[-6:]) == {"r"}


def test_a_rehearsal_looks_and_spends_nothing(stage: Stage) -> None:
    first = stage.judge(ttl=0, jti="one")
    assert (first.code, first.tat_us) == (Code.OK, None)
    assert stage.judge(ttl=0, jti="one").code is Code.OK
    assert stage.judge(jti="one").code is Code.OK
    assert stage.judge(ttl=0, jti="one").code is Code.REPLAYED
    assert stage.tat() == NOW + RATE.interval_us
    rehearsed = stage.judge(ttl=0)
    assert rehearsed.tat_us == rehearsed.before_us == stage.tat()
    for _ in range(RATE.burst - 1):
        stage.judge()
    assert stage.judge(ttl=0).code is Code.RATE
    assert stage.outcomes() == "aaaraaal"


def test_a_call_without_an_action_is_told_the_rate_and_uses_none(stage: Stage) -> None:
    for _ in range(RATE.burst):
        stage.judge()
    full = stage.tat()
    assert stage.judge(acts=False) == Reply(Code.OK, full, 0, RATE.burst + 1, full)
    assert stage.tat() == full


def test_without_a_rate_nothing_is_remembered_of_the_grant(stage: Stage) -> None:
    assert stage.judge(rate=None) == Reply(Code.OK, None, 0, 1, None)
    assert stage.tat() is None


@pytest.mark.parametrize("seed", range(12))
def test_EN_1_rates_are_judged_as_the_protocol_judges_them(seed: int, stage: Stage) -> None:
    rng = random.Random(seed)
    rate = Rate(per_minute=rng.choice([1, 7, 59, 600, 60_000]), burst=rng.choice([1, 2, 5]))
    tat: int | None = None
    now = NOW
    for _ in range(80):
        # Also backwards: clocks of two processes differ.
        now += int(rng.uniform(-0.2, 1.6) * rate.interval_us)
        acts, ttl = rng.random() < 0.9, 0 if rng.random() < 0.2 else 125_000
        wait = rate.wait_us(tat, now) if acts else 0
        reply = stage.judge(now=now, rate=rate, acts=acts, ttl=ttl, mode=rng.choice(["yes", "hold"]))
        assert reply.code is (Code.RATE if wait > 0 else Code.OK)
        assert reply.wait_us == max(wait, 0)
        assert reply.before_us == tat
        if acts and ttl and wait <= 0:
            tat = rate.advance(tat, now)
        assert reply.tat_us == tat
        assert stage.tat() == tat


def test_microseconds_are_exact_as_far_as_they_go(stage: Stage) -> None:
    late = 2**53 - 2 * Rate(60_000_000, 1).interval_us
    reply = stage.judge(now=late, rate=Rate(60_000_000, 1))
    assert reply.tat_us == late + 1 == stage.tat()


def test_a_rate_that_is_not_remembered_starts_without_a_burst(stage: Stage) -> None:
    # The epoch began three seconds ago; its grants count as if all had just used their burst.
    floor = NOW - 3_000_000 + RATE.tolerance_us
    first = stage.judge(floor=floor)
    assert first == Reply(Code.OK, floor + RATE.interval_us, 0, 1, floor)
    second = stage.judge(floor=floor)
    assert (second.code, second.wait_us) == (Code.RATE, RATE.interval_us - 3_000_000)
    # What is remembered counts, not the floor.
    assert second.before_us == floor + RATE.interval_us


def test_what_is_remembered_ends_when_it_means_nothing_any_more(stage: Stage) -> None:
    stage.judge(jti="one", ttl=125_000)
    assert 120_000 < stage.client.pttl(scripts.proof_key(SHARD, "jkt", "one")) <= 125_000
    life = RATE.interval_us // 1000 + 1000
    assert life - 5000 < stage.client.pttl(scripts.rate_key(SHARD, GRANT)) <= life + 1


@pytest.mark.parametrize("marked", [None, "2", "01"])
def test_RF_5_a_server_that_does_not_know_the_epoch_says_so_and_writes_nothing(
    marked: str | None, stage: Stage
) -> None:
    held = stage.judge(mode="hold")
    stage.client.delete(scripts.epoch_key(SHARD))
    if marked is not None:
        stage.client.set(scripts.epoch_key(SHARD), marked)
    before = stage.everything()
    lost = Reply(Code.LOST, None, 0, 0, None)
    assert [stage.judge(mode=mode) for mode in ("yes", "no", "hold")] == [lost] * 3
    assert stage.judge(ttl=0) == lost
    assert stage.give_back(held) == lost
    assert stage.note() == lost
    assert stage.everything() == before


def test_a_full_stream_stops_what_would_write_into_it(stage: Stage) -> None:
    stage.judge(bound=2)
    stage.note(bound=2)
    before = stage.everything()
    full = Reply(Code.FULL, None, 0, 0, None)
    assert [stage.judge(mode=mode, bound=2) for mode in ("yes", "no")] == [full] * 2
    assert stage.note(bound=2) == full
    assert stage.everything() == before
    # The database writes the event of this one.
    assert stage.judge(mode="hold", bound=2).code is Code.OK


def test_a_hold_takes_from_the_rate_and_writes_no_event(stage: Stage) -> None:
    held = stage.judge(mode="hold", jti="one")
    assert held == Reply(Code.OK, NOW + RATE.interval_us, 0, 0, None)
    assert stage.judge(mode="hold", jti="one") == Reply(Code.REPLAYED, None, 0, 0, None)
    again = stage.judge(mode="hold")
    assert (again.before_us, again.tat_us) == (held.tat_us, NOW + 2 * RATE.interval_us)
    stage.judge(mode="hold")
    assert stage.judge(mode="hold").code is Code.RATE
    assert stage.events() == []
    assert stage.client.get(scripts.count_key(SHARD)) is None


def test_what_is_given_back_can_be_used_again(stage: Stage) -> None:
    for _ in range(RATE.burst - 1):
        stage.judge()
    before = stage.tat()
    held = stage.judge(mode="hold")
    assert stage.judge().code is Code.RATE
    assert stage.give_back(held, now=NOW + 1) == Reply(Code.OK, before, 0, 0, held.tat_us)
    assert stage.tat() == before
    assert stage.judge().code is Code.OK


def test_a_first_use_given_back_leaves_the_whole_burst(stage: Stage) -> None:
    held = stage.judge(mode="hold")
    stage.give_back(held, now=NOW + 20)
    codes = [stage.judge(now=NOW + 20).code for _ in range(RATE.burst + 1)]
    assert codes == [*[Code.OK] * RATE.burst, Code.RATE]


def test_nothing_is_given_back_to_a_rate_that_time_has_emptied(stage: Stage) -> None:
    held = stage.judge(mode="hold")
    later = NOW + 3 * RATE.interval_us + 17
    stage.judge(now=later)
    assert stage.give_back(held, now=later + 1).tat_us == later + RATE.interval_us == stage.tat()
    stage.client.delete(scripts.rate_key(SHARD, GRANT))
    assert stage.give_back(held) == Reply(Code.OK, None, 0, 0, None)
    assert stage.tat() is None


@pytest.mark.parametrize("seed", range(20))
def test_EN_1_giving_back_never_lets_more_pass_than_the_rate(seed: int, stage: Stage) -> None:
    rng = random.Random(seed)
    rate = Rate(per_minute=rng.choice([7, 60, 600]), burst=rng.choice([1, 2, 5, 9]))
    now, kept = NOW, []
    holds: list[Reply] = []
    for _ in range(120):
        now += int(rng.expovariate(1.3) * rate.interval_us) if rng.random() < 0.5 else rng.randint(0, 3000)
        if holds and rng.random() < 0.4:
            stage.give_back(holds.pop(rng.randrange(len(holds))), now=now, rate=rate)
            continue
        hold = rng.random() < 0.5
        reply = stage.judge(now=now, rate=rate, mode="hold" if hold else "yes")
        if reply.code is Code.OK and hold:
            holds.append(reply)
        elif reply.code is Code.OK:
            kept.append(now)
    # Those that stayed, judged as if nothing had ever been held.
    tat: int | None = None
    for at in kept:
        assert rate.wait_us(tat, at) <= 0
        tat = rate.advance(tat, at)


def test_an_epoch_begins_once_in_every_shard(redis_url: str, stage: Stage) -> None:
    stage.judge()
    # A second time, for instance from a command that waited in a frozen server: the numbers go on.
    stage.servers.mark(1)
    assert stage.judge().number == 2
    stage.servers.mark(2)
    assert stage.judge().code is Code.LOST
    assert stage.judge(epoch=2).number == 1
    with pytest.raises(InvalidStateError):
        stage.servers.mark(1)
    assert {stage.client.get(scripts.epoch_key(shard)) for shard in range(scripts.SHARDS)} == {b"2"}
    # What was not written down yet stays for whoever does it.
    assert [(entry[b"e"], entry[b"n"]) for entry in stage.events()] == [
        (b"1", b"1"),
        (b"1", b"2"),
        (b"2", b"1"),
    ]


@pytest.mark.parametrize(
    ("key", "plant"),
    [
        (scripts.count_key(SHARD), b"not a number"),
        (scripts.events_key(SHARD), b"not a stream"),
    ],
)
def test_a_script_that_fails_has_written_nothing(key: bytes, plant: bytes, stage: Stage) -> None:
    stage.client.set(key, plant)
    before = stage.everything()
    with pytest.raises(RedisAwayError):
        stage.judge()
    assert stage.everything() == before


@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_EN_7_a_server_that_is_full_or_reads_only_writes_nothing(program: str, settings: Any) -> None:
    with redis_servers.server(program) as server:
        settings.REDIS_URL = server.url
        stage = Stage(server.url, sync_client())
        stage.servers.mark(1)
        held = stage.judge(mode="hold")
        before = stage.everything()
        for hurt, heal in (
            (("CONFIG", "SET", "maxmemory", "500kb"), ("CONFIG", "SET", "maxmemory", "0")),
            (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
        ):
            stage.client.execute_command(*hurt)
            for call in (stage.judge, stage.note, partial(stage.give_back, held)):
                with pytest.raises(RedisAwayError) as refused:
                    call()
                assert refused.value.why.startswith(("it refused: OOM", "it refused: READONLY"))
                assert stage.everything() == before
            stage.client.execute_command(*heal)
        assert stage.judge(jti="fresh").code is Code.OK
        stage.servers.close()
        stage.client.close()


def test_shards_and_keys_are_by_the_grant_alone() -> None:
    assert scripts.shard_of(GRANT) == SHARD
    assert {scripts.shard_of(uuid.uuid4()) for _ in range(400)} == set(range(scripts.SHARDS))
    assert scripts.rate_key(SHARD, GRANT) == b"aa:{07}:r:" + GRANT.bytes
    assert scripts.epoch_key(15) == b"aa:{15}:epoch"
    proof = scripts.proof_key(3, "jkt", "jti")
    assert proof.startswith(b"aa:{03}:p:")
    assert len(proof) == 26
    assert proof != scripts.proof_key(3, "jkt", "jtj")


@pytest.mark.parametrize("raw", [None, b"OK", [9, None, 0, 0, None], [0, None, 0, 0]])
def test_what_is_no_answer_of_a_script_is_not_read_as_one(raw: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_reply(raw)
