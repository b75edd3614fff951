"""How to inject each fault, and how to undo it."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

import httpx
import psycopg

from tests import faketime
from tests.conftest import CAMPAIGN
from tests.faults.stage import Jobs, Stage, run_for
from tests.live import LiveServer
from tests.waiting import until

# How often PostgreSQL is shut down immediately.
TIMES = 50 if CAMPAIGN else 2
Inject = Callable[[Stage, float], None]
Heal = Callable[[Stage], None]


def nothing(stage: Stage, seconds: float = 0) -> None:
    time.sleep(seconds)


def is_answering(server: LiveServer) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{server.url}/health/live", timeout=5).status_code == 200
    return False


# Processes.


def kill_workers(stage: Stage, seconds: float) -> None:
    run_for(seconds, stage.kill_a_worker, 0.5)


def kill_masters(stage: Stage, seconds: float) -> None:
    run_for(seconds, lambda: stage.kill_and_restart(stage.rng.choice(stage.verifiers)), 1)


def kill_the_registry(stage: Stage, seconds: float) -> None:
    stage.kill(stage.registry)
    time.sleep(seconds)
    stage.registry.start()


def roll(stage: Stage, seconds: float) -> None:
    for server in (stage.a, stage.b, stage.registry):
        stage.restart_gently(server)
        time.sleep(seconds / 6)


def kill_jobs(stage: Stage, seconds: float) -> None:
    """Kill repeatedly, so that the stream is drained in bursts."""

    def once() -> None:
        stage.kill(stage.jobs[0])
        stage.jobs[0].start()
        time.sleep(stage.rng.uniform(1.5, 3))

    run_for(seconds, once, 0)


def stop_jobs(stage: Stage, seconds: float) -> None:
    stage.kill(stage.jobs[0])
    time.sleep(seconds)
    assert stage.waiting() > 0


def start_jobs(stage: Stage) -> None:
    stage.jobs[0].start()


def two_jobs(stage: Stage, seconds: float) -> None:
    """Two stream drainers, two keepers, two processes numbering the log."""
    second = Jobs(stage.registry)
    second.start()
    time.sleep(seconds)
    second.stop()


def two_of_everything(stage: Stage, seconds: float) -> None:
    """A second registry and second jobs beside the two verifiers; one of each dies and returns."""
    registry, jobs = stage.new_registry(PUBLIC_URL=stage.registry.url), Jobs(stage.registry)
    first = (stage.a, stage.registry, stage.jobs[0])
    try:
        for each in (registry, jobs):
            each.start()
        stage.servers["drf 2"] = registry
        time.sleep(seconds / 3)
        for one in first:
            stage.kill(one)
        time.sleep(seconds / 3)
        for one in first:
            one.start()
        time.sleep(seconds / 3)
    finally:
        stage.servers.pop("drf 2", None)
        for each in (registry, jobs):
            each.stop()


def die_at(*points: str) -> Inject:
    """For `seconds`, kill processes inside calls, one point after another."""

    def inject(stage: Stage, seconds: float) -> None:
        run_for(seconds, lambda: stage.die_at(stage.rng.choice(points)), 0)

    return inject


def sleep_through_a_move(stage: Stage, seconds: float) -> None:
    """Suspend one verifier's processes while the replay cache moves on to another epoch."""
    epoch, asleep = stage.home()[0], stage.workers_of(stage.b)
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    stage.begin_an_epoch()
    end = time.monotonic() + max(seconds, 20)
    while stage.home()[0] == epoch and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)
    for pid in asleep:
        # Their master kills those that it has not heard of for too long.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def begin_an_epoch(stage: Stage, seconds: float) -> None:
    epoch = stage.home()[0]
    stage.begin_an_epoch()
    until(lambda: stage.home()[0] != epoch, "no epoch begins")
    time.sleep(seconds / 2)


def clock_off(by: str) -> Inject:
    """Set one host's clock wrong by this much."""

    def inject(stage: Stage, seconds: float) -> None:
        stage.b.stop()
        stage.b.env |= {
            "LD_PRELOAD": faketime.LIBRARY,
            "FAKETIME": by,
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        # It never reports that it is ready.
        stage.b.launch()
        until(lambda: is_answering(stage.b), "it does not start")
        time.sleep(seconds)

    return inject


def clock_right(stage: Stage) -> None:
    stage.b.stop()
    for name in ("LD_PRELOAD", "FAKETIME", "FAKETIME_DONT_FAKE_MONOTONIC"):
        stage.b.env.pop(name, None)
    stage.b.start()


# Redis.


def freeze_redis(stage: Stage, seconds: float) -> None:
    for node in stage.redis.nodes:
        node.freeze()
    time.sleep(seconds)


def freeze_a_node(stage: Stage, seconds: float) -> None:
    """One node of a cluster."""
    stage.redis.nodes[-1].freeze()
    time.sleep(seconds)


def thaw_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        node.thaw()


def kill_redis(stage: Stage, seconds: float) -> None:
    """The single server, or one node of a cluster."""
    stage.redis.nodes[-1].kill()
    time.sleep(seconds)


def start_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        if node.process is None:
            node.start()


def kill_redis_that_writes(stage: Stage, seconds: float) -> None:
    """Redis has an append-only file, at most a second old, and comes back with what it holds."""
    [node] = stage.redis.nodes
    client = node.client()
    client.config_set("appendonly", "yes")
    time.sleep(seconds / 2)
    node.kill()
    node.config["appendonly"] = "yes"
    time.sleep(seconds / 2)


def start_redis_that_wrote(stage: Stage) -> None:
    [node] = stage.redis.nodes
    node.start()
    node.config.pop("appendonly")
    node.client().config_set("appendonly", "no")
    shutil.rmtree(node.directory / "appendonlydir", ignore_errors=True)


def kill_redis_with_an_old_copy(stage: Stage, seconds: float) -> None:
    """Redis returns with data seconds old: marker, spent proofs, decisions already in the log."""
    [node] = stage.redis.nodes
    node.client().save()
    time.sleep(seconds)
    node.kill()


def start_redis_from_the_copy(stage: Stage) -> None:
    [node] = stage.redis.nodes
    node.start()
    (node.directory / "dump.rdb").unlink(missing_ok=True)


def flush_redis(stage: Stage, seconds: float) -> None:
    for node in stage.redis.nodes:
        node.client().flushall()
    time.sleep(seconds)


def redis_says(*command: object) -> Inject:
    def inject(stage: Stage, seconds: float) -> None:
        stage.redis.nodes[0].client().execute_command(*command)
        time.sleep(seconds)

    return inject


def redis_is_told(*command: object) -> Heal:
    return lambda stage: redis_says(*command)(stage, 0)


def cut_redis(mode: str) -> Inject:
    """Cut the second verifier off from Redis."""

    def inject(stage: Stage, seconds: float) -> None:
        for line in stage.redis_lines.values():
            line.say(mode)
        time.sleep(seconds)

    return inject


def cut_database(mode: str) -> Inject:
    """Cut the second verifier off from PostgreSQL."""

    def inject(stage: Stage, seconds: float) -> None:
        for line in stage.database_lines:
            line.say(mode)
        time.sleep(seconds)

    return inject


def cut_both(stage: Stage, seconds: float) -> None:
    cut_redis("blackhole")(stage, 0)
    cut_database("blackhole")(stage, seconds)


def mend(stage: Stage) -> None:
    for line in stage.lines:
        line.say("pass")


# PostgreSQL.


def freeze_database(stage: Stage, seconds: float) -> None:
    stage.database.freeze()
    time.sleep(seconds)


def freeze_the_door(stage: Stage, seconds: float) -> None:
    """Open connections keep working; new ones are not accepted."""
    stage.database.freeze_the_first()
    stage.kill_a_worker()
    time.sleep(seconds)


def thaw_database(stage: Stage) -> None:
    stage.database.thaw()


def freeze_all(stage: Stage, seconds: float) -> None:
    stage.database.freeze()
    freeze_redis(stage, seconds)


def thaw_all(stage: Stage) -> None:
    thaw_redis(stage)
    stage.database.thaw()


def kill_database(stage: Stage, seconds: float) -> None:
    stage.database.kill()
    stage.kills += 1
    time.sleep(seconds)
    stage.database.start()


def end_database_at_once(stage: Stage, seconds: float) -> None:
    """PostgreSQL's processes stop at once, losing unwritten data; it recovers from its WAL."""
    for _ in range(TIMES):
        stage.database.stop()
        assert not stage.database.is_running()
        stage.kills += 1
        stage.database.start()
        # Wait until the database is written to again, give or take.
        time.sleep(stage.rng.uniform(0.5, 2))


def fail_over(stage: Stage, seconds: float) -> None:
    """The primary dies, its replica takes over; given time, the old one follows it."""

    def once() -> None:
        assert stage.replica
        stage.database.kill()
        stage.kills += 1
        # Before promoting a replica, make sure the old primary has stopped.
        until(lambda: not stage.database.is_running(), "the primary lives")
        time.sleep(2)
        stage.replica.promote()
        stage.database, stage.replica = stage.replica, stage.database

    end = time.monotonic() + seconds
    once()
    while time.monotonic() < end:
        time.sleep(5)
        assert stage.replica
        stage.replica.follow(stage.database)
        time.sleep(stage.rng.uniform(0.5, 2))
        once()


def end_backends(stage: Stage, seconds: float) -> None:
    query = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> "
        "pg_backend_pid() AND backend_type = 'client backend'"
    )

    def once() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            stage.sql(query)

    run_for(seconds, once, 1)


def use_up_connections(stage: Stage, seconds: float) -> None:
    """An outsider takes every free connection, and every one that is given back."""

    def once() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                connection = psycopg.connect(stage.database.url, connect_timeout=2)
                stage.obstacles.callback(connection.close)

    once()
    # Existing connections would live on; kill workers so that new ones are needed.
    stage.kill_a_worker()
    run_for(seconds, once, 0.5)


def clear(stage: Stage) -> None:
    stage.obstacles.close()


def slow_events(stage: Stage, seconds: float) -> None:
    """Each statement that writes events takes 5 s: too long for a request."""
    body = "LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END'"
    with psycopg.connect(stage.database.url, autocommit=True) as connection:
        connection.execute(f"CREATE FUNCTION slow() RETURNS trigger {body}")
        connection.execute(
            "CREATE TRIGGER slow BEFORE INSERT ON audit_event EXECUTE FUNCTION slow()"
        )
    time.sleep(seconds)


def quick_events(stage: Stage) -> None:
    with psycopg.connect(stage.database.url, autocommit=True) as connection:
        connection.execute("DROP FUNCTION slow CASCADE")


def fill_the_disk(stage: Stage, seconds: float) -> None:
    """The database's file system has no free byte."""
    assert stage.has_own_disk, "this would fill the disk of others"
    ballast = stage.database.directory / "ballast"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], check=False, capture_output=True
    )
    time.sleep(seconds)


def empty_the_disk(stage: Stage) -> None:
    (stage.database.directory / "ballast").unlink(missing_ok=True)
    if not stage.database.is_running():
        stage.database.start()
