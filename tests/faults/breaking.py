"""How each fault is made, and undone."""

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
from tests.faults.stage import Jobs, Stage, run_for, until
from tests.live import LiveServer

# How often PostgreSQL is ended at once.
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
    """Again and again, so that the stream is drained by fits and starts."""

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
    """Two drainers, two keepers, two that number the log."""
    second = Jobs(stage.registry)
    second.start()
    time.sleep(seconds)
    second.stop()


def two_of_everything(stage: Stage, seconds: float) -> None:
    """A second registry and second jobs, as there are two verifiers; then one of each dies, and comes back."""
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
    """Kill after kill inside the calls, for `seconds`."""

    def inject(stage: Stage, seconds: float) -> None:
        run_for(seconds, lambda: stage.die_at(stage.rng.choice(points)), 0)

    return inject


def sleep_through_a_move(stage: Stage, seconds: float) -> None:
    """The processes of one verifier stand still while the home moves, and wake up in another epoch."""
    epoch, asleep = stage.home()[0], stage.workers_of(stage.b)
    for pid in asleep:
        os.kill(pid, signal.SIGSTOP)
    stage.begin_an_epoch()
    end = time.monotonic() + max(seconds, 20)
    while stage.home()[0] == epoch and time.monotonic() < end:
        time.sleep(0.2)
    time.sleep(1)
    for pid in asleep:
        os.kill(pid, signal.SIGCONT)


def begin_an_epoch(stage: Stage, seconds: float) -> None:
    epoch = stage.home()[0]
    stage.begin_an_epoch()
    while stage.home()[0] == epoch:
        time.sleep(0.2)
    time.sleep(seconds / 2)


def clock_off(by: str) -> Inject:
    """One host's clock is wrong by so much."""

    def inject(stage: Stage, seconds: float) -> None:
        stage.b.stop()
        stage.b.env |= {"LD_PRELOAD": faketime.LIBRARY, "FAKETIME": by, "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
        # It never says that it is ready.
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
    """One of a cluster."""
    stage.redis.nodes[-1].freeze()
    time.sleep(seconds)


def thaw_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        node.thaw()


def kill_redis(stage: Stage, seconds: float) -> None:
    """One server; of a cluster, one node."""
    stage.redis.nodes[-1].kill()
    time.sleep(seconds)


def start_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        if node.process is None:
            node.start()


def kill_redis_that_writes(stage: Stage, seconds: float) -> None:
    """It has a log of its own, up to a second old, and comes back with what is in it."""
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
    """What it comes back with is some seconds old: marker, spent proofs and decisions that are in the log by now."""
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
    """Between the second verifier and Redis."""

    def inject(stage: Stage, seconds: float) -> None:
        for line in stage.redis_lines.values():
            line.say(mode)
        time.sleep(seconds)

    return inject


def cut_database(mode: str) -> Inject:
    """Between the second verifier and PostgreSQL."""

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
    """Whoever is connected goes on; a process that comes anew is not let in."""
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
    """Its processes end wherever they are, and what they had not written is gone with them; it starts from its log."""
    for _ in range(TIMES):
        stage.database.stop()
        assert not stage.database.is_running()
        stage.kills += 1
        stage.database.start()
        # Until somebody writes again, and then a little more or less.
        time.sleep(stage.rng.uniform(0.5, 2))


def fail_over(stage: Stage, seconds: float) -> None:
    """The primary dies, its replica takes over a little later. Where time is left, the dead one comes back as a replica."""

    def once() -> None:
        assert stage.replica
        stage.database.kill()
        stage.kills += 1
        # Whoever promotes makes sure first that the other has ended.
        until(lambda: not stage.database.is_running(), "the primary lives", 10)
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
    query = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"

    def once() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            stage.sql(query)

    run_for(seconds, once, 1)


def use_up_connections(stage: Stage, seconds: float) -> None:
    """A stranger takes what is left, and what is given back."""

    def once() -> None:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                connection = psycopg.connect(stage.database.url, connect_timeout=2)
                stage.obstacles.callback(connection.close)

    once()
    # Those that are there live on; so that new ones are needed, they are ended.
    stage.kill_a_worker()
    run_for(seconds, once, 0.5)


def clear(stage: Stage) -> None:
    stage.obstacles.close()


def slow_events(stage: Stage, seconds: float) -> None:
    """Each statement that writes events takes 5 s: too long for whoever answers a request."""
    body = "LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(5); RETURN NULL; END'"
    with psycopg.connect(stage.database.url, autocommit=True) as connection:
        connection.execute(f"CREATE FUNCTION slow() RETURNS trigger {body}")
        connection.execute("CREATE TRIGGER slow BEFORE INSERT ON audit_event EXECUTE FUNCTION slow()")
    time.sleep(seconds)


def quick_events(stage: Stage) -> None:
    with psycopg.connect(stage.database.url, autocommit=True) as connection:
        connection.execute("DROP FUNCTION slow CASCADE")


def fill_the_disk(stage: Stage, seconds: float) -> None:
    """The file system of the database has not one byte left."""
    assert stage.has_own_disk, "this would fill the disk of others"
    ballast = stage.database.directory / "ballast"
    subprocess.run(["dd", "if=/dev/zero", f"of={ballast}", "bs=1M"], check=False, capture_output=True)
    time.sleep(seconds)


def empty_the_disk(stage: Stage) -> None:
    (stage.database.directory / "ballast").unlink(missing_ok=True)
    if not stage.database.is_running():
        stage.database.start()
