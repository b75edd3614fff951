"""The Redis scripts: proofs once, rates as in the protocol, and events numbered without a gap."""

import asyncio
import random
import uuid
from functools import partial
from typing import Any

import pytest

from agentauth.protocol.usage_counters import Rate
from tests import redis_servers
from verifier.stores import lua_scripts, redis_keys
from verifier.stores.lua_scripts import Code, Reply, read_reply
from verifier.stores.redis_probe import RedisProbe, ServersAwayError
from verifier.stores.redis_servers import RedisAwayError, Servers
from verifier.tests.script_stage import BASE, GRANT, MAC, NOW, RATE, SHARD, Stage

pytestmark = pytest.mark.redis


def test_EN_4_of_fifty_at_once_with_one_proof_one_passes(redis_url: str, stage: Stage) -> None:
    async def main() -> list[Any]:
        # Each over its own connection, as from fifty processes.
        many = [Servers(redis_url) for _ in range(50)]
        for servers in many:
            marks = [redis_keys.epoch_key(SHARD), redis_keys.absent_key(SHARD)]
            await servers.evaluate(lua_scripts.MARKER, SHARD, marks, [], deadline=10)
        keys = stage.keys({"jti": "one"})
        calls = [
            servers.evaluate(lua_scripts.JUDGE, SHARD, keys, stage.args(rate=None), deadline=10)
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
        {b"e": b"1", b"n": str(number).encode(), b"o": letter, b"b": BASE, b"m": MAC}
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
    # It was refused as a replay, so the verdict in the arguments does not count.
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


def test_call_without_an_action_reports_the_rate_and_uses_none_of_it(stage: Stage) -> None:
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
        # Times also go back, because clocks of two processes differ.
        now += int(rng.uniform(-0.2, 1.6) * rate.interval_us)
        acts, ttl = rng.random() < 0.9, 0 if rng.random() < 0.2 else 125_000
        wait = rate.wait_us(tat, now) if acts else 0
        reply = stage.judge(
            now=now, rate=rate, acts=acts, ttl=ttl, mode=rng.choice(["yes", "hold"])
        )
        assert reply.code is (Code.RATE if wait > 0 else Code.OK)
        assert reply.wait_us == max(wait, 0)
        assert reply.before_us == tat
        if acts and ttl and wait <= 0:
            tat = rate.advance(tat, now)
        assert reply.tat_us == tat
        assert stage.tat() == tat


def test_microseconds_are_exact_as_far_as_they_go(stage: Stage) -> None:
    late = 2**53 - 2 * Rate(60_000_000, 1).interval_us
    reply = stage.judge(now=late, rate=Rate(60_000_000, 1), apart=2**53)
    assert reply.tat_us == late + 1 == stage.tat()


def test_a_rate_that_is_not_remembered_starts_without_a_burst(stage: Stage) -> None:
    # The epoch began 3 s ago, and its grants count as if all had just used their burst.
    floor = NOW - 3_000_000 + RATE.tolerance_us
    first = stage.judge(floor=floor)
    assert first == Reply(Code.OK, floor + RATE.interval_us, 0, 1, floor)
    second = stage.judge(floor=floor)
    assert (second.code, second.wait_us) == (Code.RATE, RATE.interval_us - 3_000_000)
    # The remembered time counts, not the floor.
    assert second.before_us == floor + RATE.interval_us


@pytest.mark.redis
def test_EN_7_rate_left_by_an_earlier_epoch_counts_as_missing(stage: Stage) -> None:
    """Between two epochs in Redis, the database may have counted uses."""
    stage.judge()
    floor = NOW + RATE.tolerance_us
    assert stage.judge(floor=floor).before_us == floor


def test_what_is_remembered_ends_when_it_means_nothing_any_more(stage: Stage) -> None:
    stage.judge(jti="one", ttl=125_000)
    assert 120_000 < stage.client.pttl(redis_keys.proof_key(SHARD, "jkt", "one")) <= 125_000
    # Clocks differ from the database's by up to 5 s either way, and a call may be 12 s late. The
    # latest caller must still find the rate.
    life = RATE.interval_us // 1000 + 25_000
    assert life - 5000 < stage.client.pttl(redis_keys.rate_key(SHARD, GRANT)) <= life + 1


@pytest.mark.parametrize("marked", [None, "2", "01"])
def test_RF_5_server_without_the_epoch_reports_it_and_writes_nothing(
    marked: str | None, stage: Stage
) -> None:
    held = stage.judge(mode="hold")
    stage.client.delete(redis_keys.epoch_key(SHARD))
    if marked is not None:
        stage.client.set(redis_keys.epoch_key(SHARD), marked)
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
    # The database writes this call's event.
    assert stage.judge(mode="hold", bound=2).code is Code.OK


def test_an_epoch_begins_once_in_every_shard(redis_url: str, stage: Stage) -> None:
    stage.judge()
    # Marking twice, as by a command that waited in a frozen server, continues the numbers.
    RedisProbe().mark(1)
    assert stage.judge().number == 2
    RedisProbe().mark(2)
    assert stage.judge().code is Code.LOST
    assert stage.judge(epoch=2).number == 1
    with pytest.raises(ServersAwayError):
        RedisProbe().mark(1)
    assert {
        stage.client.get(redis_keys.epoch_key(shard)) for shard in range(redis_keys.SHARDS)
    } == {b"2"}
    # Entries not yet in the log stay for the outbox.
    assert [(entry[b"e"], entry[b"n"]) for entry in stage.events()] == [
        (b"1", b"1"),
        (b"1", b"2"),
        (b"2", b"1"),
    ]


@pytest.mark.parametrize(
    ("key", "plant"),
    [
        (redis_keys.count_key(SHARD), b"not a number"),
        (redis_keys.events_key(SHARD), b"not a stream"),
    ],
)
def test_a_script_that_fails_has_written_nothing(key: bytes, plant: bytes, stage: Stage) -> None:
    stage.client.set(key, plant)
    before = stage.everything()
    with pytest.raises(RedisAwayError):
        stage.judge()
    assert stage.everything() == before


@pytest.mark.parametrize("program", redis_servers.PROGRAMS)
def test_EN_7_a_server_that_is_full_or_reads_only_writes_nothing(
    program: str, settings: Any
) -> None:
    with redis_servers.server(program) as server:
        settings.REDIS_URL = server.registry_url
        stage = Stage(server.registry_url, server.client())
        RedisProbe().mark(1)
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
    assert redis_keys.shard_of(GRANT) == SHARD
    assert {redis_keys.shard_of(uuid.uuid4()) for _ in range(400)} == set(range(redis_keys.SHARDS))
    assert redis_keys.rate_key(SHARD, GRANT) == b"aa:{07}:r:" + GRANT.bytes
    assert redis_keys.epoch_key(15) == b"aa:{15}:epoch"
    proof = redis_keys.proof_key(3, "jkt", "jti")
    assert proof.startswith(b"aa:{03}:p:")
    assert len(proof) == 26
    assert proof != redis_keys.proof_key(3, "jkt", "jtj")


@pytest.mark.parametrize("raw", [None, b"OK", [9, None, 0, 0, None], [0, None, 0, 0]])
def test_malformed_script_reply_is_refused(raw: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        read_reply(raw)


@pytest.mark.parametrize("written", ["inf", "nan", "1e308", "9" * 40])
def test_malformed_stored_rate_counts_as_missing(stage: Stage, written: str) -> None:
    stage.client.set(redis_keys.rate_key(SHARD, GRANT), written)
    assert stage.judge().tat_us == NOW + RATE.interval_us
