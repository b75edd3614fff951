"""What is lost with a machine, and what the records outside say about it (docs/restore.md).

Once with the nightly base backup and the WAL archive, once with an asynchronous replica. With a
synchronous one nothing is lost: `changes.py`.
"""

import json
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests import postgres, redis_servers
from tests.faults.recovering import RecoveryStage
from tests.faults.restoring import (
    RestoreStage,
    Story,
    begin_story,
    pay,
    restore_stage,
)
from tests.faults.stage import Stage
from tests.faults.table import Results
from tests.waiting import until

pytestmark = [
    pytest.mark.faults,
    pytest.mark.flow,
    pytest.mark.long,
    pytest.mark.postgres,
    pytest.mark.redis,
]
# What a process finds in the store or in Redis after a restore.
OUTSIDE = re.compile(r"checkpoint of (\d+) events, but the database has only (\d+)")
MARK = re.compile(r"knows of (\d+) events, and the (\d+) events of this database")
# Jobs leave a mark of the log's size in Redis each second.
MARK_SECONDS = 4


def paid(held: Stage, story: Story, key: str) -> None:
    assert pay(held, story, key, amount="1.00").json()["valid"] is True


def payments(held: Stage) -> int:
    [(count,)] = held.sql(
        "SELECT count(*) FROM audit_event WHERE kind = 'verifier.decision.allowed'"
    )
    return int(count)


def found(held: RestoreStage) -> tuple[int, int]:
    """How many events are known outside, and how many the restored database has."""
    why = held.why_held()
    [(outside, here)] = MARK.findall(why) or OUTSIDE.findall(why)
    return int(outside), int(here)


def stop(held: Stage) -> None:
    for server in (*held.servers.values(), *held.jobs):
        server.stop()


def launch(held: Stage) -> None:
    for server in (*held.servers.values(), *held.jobs):
        server.launch()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[RecoveryStage]:
    with restore_stage(tmp_path, RecoveryStage) as made:
        yield made


def test_SA_13_restored_from_the_nightly_backup_the_loss_is_named(
    place: RecoveryStage, results: Results, tmp_path: Path
) -> None:
    """Nightly backups, payments, loss of the machine with unarchived WAL, restore, verification."""
    place.schedule_backups()
    story = begin_story(place)
    paid(place, story, "order-1")
    place.archive_all()
    first, oldest = place.backups[0], min(place.archive.iterdir())
    place.schedule_backups(keep=1)
    assert [each.exists() for each in (first, oldest, *place.backups)] == [False, False, True]
    paid(place, story, "order-2")
    place.put_outside()
    kept = tmp_path / "checkpoint"
    kept.write_text(httpx.get(f"{place.registry.url}/v1/audit/checkpoint").text)
    place.archive_all()
    # From now on nothing reaches the archive: what follows is lost with the machine.
    place.database.say("ALTER SYSTEM SET archive_command = 'false'", "SELECT pg_reload_conf()")
    paid(place, story, "order-3")
    place.put_outside()
    later = tmp_path / "later"
    later.write_text(httpx.get(f"{place.registry.url}/v1/audit/checkpoint").text)
    lose_the_machine(place)
    place.recover()
    launch(place)
    place.until_held()
    assert payments(place) == 2
    outside, here = found(place)
    assert "The log continues as" in place.as_printed("continue", OPERATOR="alice")
    place.until_it_decides()
    assert place.status(story.payer) == "suspended"
    place.put_outside()
    assert "THE LOG BREAKS after" in place.as_printed("verify", code=1)
    # Of the checkpoints kept elsewhere, the one from before the loss is in the restored log.
    [broken] = json.loads(place.command("verify_audit", "--full").stdout)["breaks"]
    accepting = ("verify_audit", "--full", "--accept-break", broken, "--from")
    assert place.command(*accepting, str(kept)).returncode == 0
    assert place.command(*accepting, str(later)).returncode == 1
    results.lines.append(
        f"the machine lost, restored from base backup and WAL archive: {outside - here} of "
        f"{outside} events lost, one of three payments among them"
    )


def lose_the_machine(place: RecoveryStage) -> None:
    place.database.kill()
    until(lambda: not place.database.is_running(), "it runs", 10)
    stop(place)
    shutil.rmtree(place.database.data)


@pytest.fixture
def replicated(tmp_path: Path) -> Iterator[RestoreStage]:
    with (
        postgres.server() as database,
        postgres.replica(database) as replica,
        redis_servers.server() as redis,
    ):
        database.say("ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        made = RestoreStage(database, redis, tmp_path, seed=1, store_uri="", replica=replica)
        with made.while_up():
            yield made


@pytest.mark.parametrize("knows", ["the store", "Redis"])
def test_RF_3_an_asynchronous_replica_that_lagged_is_held(
    replicated: RestoreStage, results: Results, knows: str
) -> None:
    """The replica receives nothing more, payments continue, the primary dies."""
    story = begin_story(replicated)
    paid(replicated, story, "order-1")
    replicated.put_outside()
    caught_up(replicated)
    assert replicated.replica
    replicated.replica.say("ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()")
    until(lambda: senders(replicated) == "0", "the replica still receives", 20)
    for order in ("order-2", "order-3"):
        paid(replicated, story, order)
    if knows == "the store":
        replicated.put_outside()
    else:
        queue = "SELECT count(*) FROM audit_queueentry"
        until(lambda: replicated.sql(queue) == [(0,)], "events stay without a number")
        time.sleep(MARK_SECONDS)
    promote(replicated, and_lose_redis=knows == "the store")
    replicated.until_held()
    assert payments(replicated) == 1
    outside, here = found(replicated)
    assert knows != "Redis" or MARK.search(replicated.why_held())
    replicated.go_on()
    replicated.until_it_decides()
    results.lines.append(
        f"an asynchronous replica that lagged took over: {outside - here} of {outside} events "
        f"lost, two of three payments among them; found by {knows}: {replicated.why_held()}"
    )


def caught_up(held: RestoreStage) -> None:
    [(written,)] = held.sql("SELECT pg_current_wal_lsn()::text")
    assert held.replica
    asked = f"SELECT pg_last_wal_replay_lsn() >= '{written}'"
    until(lambda: bool(held.replica and held.replica.say(asked) == "t"), "the replica lags", 30)


def senders(held: RestoreStage) -> str:
    return held.database.say("SELECT count(*) FROM pg_stat_replication")


def promote(held: RestoreStage, *, and_lose_redis: bool) -> None:
    assert held.replica
    held.database.kill()
    if and_lose_redis:
        held.redis.nodes[0].client().flushall()
    until(lambda: not held.database.is_running(), "the primary lives", 10)
    held.replica.promote()
    held.database, held.replica = held.replica, held.database
