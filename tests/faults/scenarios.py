"""The faults, as a table: what is done for how long, how it ends, and what must be true of the answers after it."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.stage import Stage, run_for

# Two moves of the home (away, and back after half a minute of answers) and what a busy machine adds.
MOVES_SECONDS = 75


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault. `inject` takes the stage and how long it is to last, and returns when the time is over; `heal` undoes it.

    `within`: seconds after it by which answers must be good again; from then on `good` of a hundred calls must be.
    `may_lose`: light decisions may be missing from the log, as many as the log says. `cut_off`: a verifier goes
    without the database, and so knows of a revocation by its age alone.
    """

    name: str
    cases: str
    inject: Callable[[Stage, float], None]
    heal: Callable[[Stage], None] = lambda _: None
    seconds: float = 6
    campaign_seconds: float = 20
    within: float = 15
    good: float = 97
    may_lose: bool = False
    cut_off: bool = False
    in_ci: bool = False
    # Of all calls, also those during the fault.
    good_during: float = 0


def kill_workers(stage: Stage, seconds: float) -> None:
    run_for(seconds, stage.kill_a_worker, 0.5)


def kill_masters(stage: Stage, seconds: float) -> None:
    run_for(seconds, lambda: stage.kill_and_restart(stage.rng.choice(stage.verifiers)), 1)


def roll(stage: Stage, seconds: float) -> None:
    for server in (stage.a, stage.b, stage.registry):
        stage.restart_gently(server)
        time.sleep(seconds / 6)


def freeze_redis(stage: Stage, seconds: float) -> None:
    for node in stage.redis.nodes:
        node.freeze()
    time.sleep(seconds)


def thaw_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        node.thaw()


def restart_redis_empty(stage: Stage, seconds: float) -> None:
    [node] = stage.redis.nodes
    node.kill()
    time.sleep(seconds)


def start_redis(stage: Stage) -> None:
    for node in stage.redis.nodes:
        if node.process is None:
            node.start()


def flush_redis(stage: Stage, seconds: float) -> None:
    stage.redis.nodes[0].client().flushall()
    time.sleep(seconds)


def freeze_database(stage: Stage, seconds: float) -> None:
    stage.database.freeze()
    time.sleep(seconds)


def kill_database(stage: Stage, seconds: float) -> None:
    stage.database.kill()
    time.sleep(seconds)
    stage.database.start()


def nothing(stage: Stage, seconds: float) -> None:
    time.sleep(seconds)


SCENARIOS = [
    Scenario("no fault", "", nothing, seconds=4, within=2, good=99, good_during=97),
    Scenario("kill -9 a worker every 0.5 s", "RF-1", kill_workers, in_ci=True, good_during=70),
    Scenario("kill -9 Redis, started empty", "RF-5 EN-7", restart_redis_empty, start_redis, seconds=4, within=MOVES_SECONDS, may_lose=True, in_ci=True),
    Scenario("kill -9 PostgreSQL, started again", "RF-3", kill_database, seconds=2, within=60, in_ci=True),
    Scenario("kill -9 the master, started again", "RF-2", kill_masters, within=20),
    Scenario("SIGTERM, one after the other", "RF-18", roll, in_ci=True, good_during=100),
    Scenario("Redis frozen", "RF-6 EN-7", freeze_redis, thaw_redis, seconds=8, campaign_seconds=30, within=MOVES_SECONDS, in_ci=True),
    Scenario("FLUSHALL", "RF-5", flush_redis, within=30, may_lose=True, in_ci=True),
    Scenario("PostgreSQL frozen", "RF-4 RF-25", freeze_database, lambda stage: stage.database.thaw(), seconds=8, campaign_seconds=30, within=30, cut_off=True, in_ci=True),
]  # fmt: skip
