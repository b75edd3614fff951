"""The outbox takes over what is in Redis: each decision once, whatever crashes or fails."""

import contextlib
import threading
import uuid
from datetime import datetime
from time import monotonic

import pytest
from django.db import connection, transaction
from pytest_django.fixtures import Settings
from redis import Redis

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.models import Event, Leaf, QueueEntry
from audit.services import seal_audit
from audit.tests.dying import dies_at
from audit.tests.tampering import execute
from registry.models import Agent
from tests import redis_servers
from tests.redis_servers import Server
from verifier.models import GrantLedger, Home, StreamCursor
from verifier.services import decision_stream_drain
from verifier.services.decision_stream_drain import count_waiting, drain, drain_redis
from verifier.stores.redis_keys import SHARDS
from verifier.stores.redis_py_client import sync_client
from verifier.stores.redis_servers import SLOT_OF_SHARD
from verifier.tests.scene import LOOK, Scene, scene
from verifier.tests.streams import Verifier, assert_whole, decided, logged_decisions, losses

FULL = "NEW.request_id = 'full'"
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.redis]


def test_what_waits_is_taken_over_in_order_and_gone_from_redis(
    redis_url: str, settings: Settings, place: Scene, now: datetime
) -> None:
    """On each kind of server."""
    settings.REDIS_URL = redis_url
    redis, written = sync_client(), []
    for shard in range(SHARDS):
        one = Verifier(redis, place, shard)
        written += [one.write(), one.write("r"), one.write("l"), one.write(kind="rehearsed")]
    assert count_waiting(redis) == [4] * 16
    assert drain(redis, now=now) == 64
    assert logged_decisions() == sorted(written)
    assert count_waiting(redis) == [0] * 16
    assert GrantLedger.objects.get().uses == 16
    assert set(StreamCursor.objects.values_list("epoch", "shard", "number")) == {
        (1, n, 4) for n in range(16)
    }
    assert losses() == []
    assert_whole(now)
    assert drain(redis, now=now) == 0


def test_what_waits_in_all_shards_is_one_commit_and_has_its_numbers_in_it(
    redis: Redis, place: Scene, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other events of the database wait for the sequencer; these do not."""
    seal_audit(now=now)
    commits: list[str] = []
    monkeypatch.setattr(decision_stream_drain, "fault_point", commits.append)
    written = []
    for shard in range(SHARDS):
        one = Verifier(redis, place, shard)
        written += [one.write(), one.write("r")]
    assert drain(redis, now=now) == 32
    assert commits == ["drain.before_commit", "drain.after_commit"]
    assert not QueueEntry.objects.exists()
    numbered = Leaf.objects.order_by("-leaf_index").values_list("event_id", flat=True)[:32]
    assert [str(pk) for pk in reversed(numbered)] == sorted(written)
    assert_whole(now)


def test_an_event_that_comes_twice_in_two_shards_is_written_once(
    redis: Redis, place: Scene, now: datetime
) -> None:
    """Both at once, and if it is in the log already. The others in its commit are taken over."""
    base = decided(place.grant)
    first, second, third = (Verifier(redis, place, shard) for shard in (2, 5, 9))
    first.write(base=base)
    second.write(base=base)
    assert drain(redis, now=now) == 2
    assert [(loss["reason"], loss["shard"]) for loss in losses()] == [("repeated", 5)]
    written = [first.write(), third.write()]
    third.write(base=base)
    assert drain(redis, now=now) == 3
    assert [(loss["reason"], loss["shard"]) for loss in losses()] == [
        ("repeated", 5),
        ("repeated", 9),
    ]
    assert logged_decisions() == sorted([base["id"], *written])
    assert GrantLedger.objects.get().uses == 3
    assert count_waiting(redis) == [0] * 16
    assert_whole(now)


def test_more_than_a_batch_is_taken_over_in_one_run(
    verifier: Verifier, redis: Redis, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits: list[str] = []
    monkeypatch.setattr(decision_stream_drain, "fault_point", commits.append)
    monkeypatch.setattr(decision_stream_drain, "BATCH", 4)
    written = [verifier.write() for _ in range(11)]
    assert drain(redis, now=now) == 11
    # Shards take turns: one of each of sixteen, then the rest of one: four, four and two.
    assert commits.count("drain.after_commit") == 4
    assert logged_decisions() == sorted(written)
    assert GrantLedger.objects.get().uses == 11
    assert_whole(now)


def test_a_run_ends_though_more_keeps_coming(
    verifier: Verifier, redis: Redis, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_stream_drain, "BATCH", 1)
    monkeypatch.setattr(decision_stream_drain, "RUN_SECONDS", 0.2)
    monkeypatch.setattr(decision_stream_drain, "fault_point", lambda _place: verifier.write())
    verifier.write()
    assert drain(redis, now=now) > 0
    assert sum(count_waiting(redis)) > 0


def test_only_a_yes_to_an_action_is_a_use(verifier: Verifier, redis: Redis, now: datetime) -> None:
    verifier.write(data={"action": None}, capability=None)
    verifier.write(kind="rehearsed", data={"action": LOOK, "dry_run": True})
    verifier.write("v", kind="denied", error="insufficient_scope", reason="constraint")
    verifier.write("r")
    verifier.write("l")
    assert drain(redis, now=now) == 5
    assert not GrantLedger.objects.exists()
    verifier.write()
    # Continues from what the database store counted.
    verifier.place.ask(LOOK)
    assert GrantLedger.objects.get().uses == 1
    assert drain(redis, now=now) == 1
    assert GrantLedger.objects.get().uses == 2
    assert_whole(now)


def test_a_refusal_is_of_its_agents_human(verifier: Verifier, redis: Redis, now: datetime) -> None:
    nobody = str(uuid.uuid4())
    first = verifier.write("v", kind="denied", error="invalid_dpop_proof", reason="iat", human=None)
    second = verifier.write("r", human=None, agent=nobody)
    third = verifier.write(
        "v", kind="denied", error="invalid_token", human=None, agent=None, grant=None, jti=None
    )
    assert drain(redis, now=now) == 3
    # Nor of one whom an attacker wrote into the agent's row.
    Agent.objects.update(human=scene().human)
    fourth = verifier.write("v", kind="denied", error="invalid_dpop_proof", human=None)
    assert drain(redis, now=now) == 1
    every = [first, second, third, fourth]
    humans = dict(Event.objects.filter(pk__in=every).values_list("pk", "human_id"))
    assert humans == {
        uuid.UUID(first): verifier.place.human.pk, uuid.UUID(second): None, uuid.UUID(third): None,
        uuid.UUID(fourth): None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("place_of_death", "written_before"), [("drain.before_commit", 0), ("drain.after_commit", 3)]
)
def test_a_drainer_that_dies_leaves_each_decision_to_be_written_once(
    verifier: Verifier,
    redis: Redis,
    now: datetime,
    caplog: pytest.LogCaptureFixture,
    place_of_death: str,
    written_before: int,
) -> None:
    written = [verifier.write() for _ in range(3)]
    with dies_at(place_of_death, decision_stream_drain):
        drain(redis, now=now)
    assert len(logged_decisions()) == written_before
    assert count_waiting(redis)[0] == 3
    written.append(verifier.write())
    assert drain(redis, now=now) == 4 - written_before
    # Numbers below the cursor are looked up first, so the database reports no duplicate.
    assert not caplog.records
    assert logged_decisions() == sorted(written)
    assert GrantLedger.objects.get().uses == 4
    assert count_waiting(redis)[0] == 0
    assert losses() == []
    assert_whole(now)


def test_of_several_drainers_at_once_one_takes_each_decision(
    redis: Redis, redis_server: Server, place: Scene, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_stream_drain, "BATCH", 5)
    written = []
    for shard in range(4):
        one = Verifier(redis, place, shard)
        written += [one.write() for _ in range(40)]
    failures: list[BaseException] = []
    counts: list[int] = []
    gate = threading.Barrier(3)

    def run() -> None:
        try:
            gate.wait()
            with redis_server.client() as client:
                while sum(count_waiting(client)):
                    counts.append(drain(client, now=now))
        except BaseException as error:  # noqa: BLE001 — handed to the test below
            failures.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert sum(counts) == 160
    assert logged_decisions() == sorted(written)
    assert GrantLedger.objects.get().uses == 160
    assert losses() == []
    assert_whole(now)


def test_database_decisions_during_a_drain_lose_no_use(
    redis: Redis, redis_server: Server, place: Scene, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_stream_drain, "BATCH", 3)
    verifier = Verifier(redis, place)
    for _ in range(30):
        verifier.write()
    failures: list[BaseException] = []

    def decide() -> None:
        try:
            for _ in range(8):
                place.ask(LOOK)
        except BaseException as error:  # noqa: BLE001 — handed to the test below
            failures.append(error)
        finally:
            connection.close()

    thread = threading.Thread(target=decide)
    thread.start()
    drain(redis, now=now)
    thread.join()
    assert failures == []
    assert GrantLedger.objects.get().uses == 38
    assert_whole(now)


def test_a_yes_for_a_grant_that_is_not_ours_holds_up_nothing(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    verifier.write(grant=str(uuid.uuid4()))
    verifier.write()
    assert drain(redis, now=now) == 2
    assert GrantLedger.objects.get().uses == 1


def refusing(condition: str) -> str:
    if connection.vendor == "postgresql":
        return f"FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION agentauth_refuse('full')"
    return f"WHEN {condition} BEGIN SELECT RAISE(ABORT, 'full'); END"


def test_AU_2_RF_21_refused_event_waits_and_blocks_no_other_shard(
    redis: Redis, place: Scene, now: datetime
) -> None:
    first, second = Verifier(redis, place, 3), Verifier(redis, place, 4)
    refused, passed = [first.write(rid="full"), first.write()], [second.write()]
    execute(f"CREATE TRIGGER broken BEFORE INSERT ON audit_event {refusing(FULL)}")
    try:
        for _ in range(2):
            with pytest.raises(TemporarilyUnavailableError):
                drain(redis, now=now)
        assert logged_decisions() == passed
        assert count_waiting(redis)[3:5] == [2, 0]
        assert GrantLedger.objects.get().uses == 1
    finally:
        execute(
            "DROP TRIGGER broken" + (" ON audit_event" if connection.vendor == "postgresql" else "")
        )
    assert drain(redis, now=now) == 2
    assert logged_decisions() == sorted(passed + refused)
    assert GrantLedger.objects.get().uses == 3
    assert losses() == []
    assert_whole(now)


@pytest.mark.postgres
def test_locked_grant_blocks_no_other_shard_and_not_the_log(
    redis: Redis, place: Scene, now: datetime
) -> None:
    held, free = Verifier(redis, place, 3), Verifier(redis, scene(), 4)
    GrantLedger.objects.get_or_create(grant=place.grant)
    kept, passed = held.write(), free.write()
    holding, over = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            GrantLedger.objects.select_for_update().get(grant=place.grant)
            holding.set()
            over.wait(20)
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(5)
    execute("SET lock_timeout = '300ms'")
    try:
        with pytest.raises(TemporarilyUnavailableError):
            drain(redis, now=now)
        assert logged_decisions() == [passed]
        # The log's head is not locked.
        seal_audit(now=now)
    finally:
        execute("RESET lock_timeout")
        over.set()
        thread.join()
    assert drain(redis, now=now) == 1
    assert logged_decisions() == sorted([passed, kept])
    assert_whole(now)


def test_what_is_refused_is_tried_once_in_a_run_however_much_waits(
    verifier: Verifier,
    redis: Redis,
    now: datetime,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(decision_stream_drain, "BATCH", 1)
    verifier.write(rid="full")
    verifier.write()
    execute(f"CREATE TRIGGER broken BEFORE INSERT ON audit_event {refusing(FULL)}")
    try:
        with pytest.raises(TemporarilyUnavailableError):
            drain(redis, now=now)
    finally:
        execute(
            "DROP TRIGGER broken" + (" ON audit_event" if connection.vendor == "postgresql" else "")
        )
    assert caplog.text.count("decisions of shard 0 could not be taken over") == 1


def test_without_redis_in_the_settings_nothing_is_asked(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    verifier.write()
    assert drain_redis(now=now) == 0
    assert count_waiting(redis)[0] == 1


def test_unconfigured_redis_loses_acknowledged_events_of_past_epochs(
    verifier: Verifier, redis: Redis, now: datetime
) -> None:
    """If the streams come back, their events are taken over all the same."""
    written = [verifier.write(), verifier.write()]
    StreamCursor.objects.create(epoch=1, shard=0, number=0, told=2)
    assert drain_redis(now=now) == 0
    Home.objects.update(epoch=2, kind=Home.Kind.DATABASE)
    assert drain_redis(now=now) == 1
    assert [(loss["reason"], loss["shard"], loss["count"]) for loss in losses()] == [
        ("forgotten", 0, 2)
    ]
    assert drain_redis(now=now) == 0
    drain(redis, now=now)
    assert set(written) <= set(logged_decisions())


@pytest.mark.parametrize(
    "which", [0, *(pytest.param(each, marks=pytest.mark.long) for each in (1, 2))]
)
def test_a_node_of_a_cluster_that_is_away_holds_up_no_other(
    which: int, settings: Settings, place: Scene, now: datetime
) -> None:
    with redis_servers.cluster() as cluster:
        settings.REDIS_URL = cluster.registry_url
        redis, written = sync_client(), {}
        for node in cluster.nodes:
            node.client().config_set("cluster-require-full-coverage", "no")
        for shard in range(SHARDS):
            written[shard] = Verifier(redis, place, shard).write()
        gone = cluster.nodes[which]
        here = [shard for shard in range(SHARDS) if cluster.owner(SLOT_OF_SHARD[shard]) is not gone]
        gone.freeze()
        try:
            with pytest.raises(TemporarilyUnavailableError):
                drain_redis(now=now)
            assert set(logged_decisions()) == {written[shard] for shard in here}
        finally:
            gone.thaw()
        # It may believe for a moment that the other nodes are away.
        until = monotonic() + 30
        while set(logged_decisions()) != set(written.values()):
            assert monotonic() < until
            with contextlib.suppress(TemporarilyUnavailableError):
                drain_redis(now=now)
        assert losses() == []
