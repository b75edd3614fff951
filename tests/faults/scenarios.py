"""The table of faults: what is done, for how long, how it ends, and what answers must be like."""

from dataclasses import dataclass

from tests.faults import breaking as b
from tests.faults.breaking import Heal, Inject
from tests.faults.redis_failover import fail_over

# Redis is asked again and a new epoch begins in it within this time, with a margin for a busy
# machine.
EPOCH_SECONDS = 15
# A decision not written within 5 s is 503; with a margin for a busy machine.
TOLD_SECONDS = 8
# How many scenarios that are not `in_ci` `make long` runs at a time, in rotation.
IN_TURN = 1


@dataclass(frozen=True, slots=True)
class Scenario:
    """One fault. `inject` takes the stage and the duration, and returns when that is over; `heal`
    undoes it.

    `within`: seconds after which answers must be good again; from then on `good` percent of calls
    must be. `may_lose`: light decisions may be missing from the log, as many as the log reports.
    `cut_off`: a verifier loses the database, or finds the new primary later than others, so it
    refuses a revoked token only once its own knowledge is too old. `stale_at`: these servers (a, b)
    give no yes once their knowledge is too old.
    """

    name: str
    cases: str
    inject: Inject
    heal: Heal = b.nothing
    seconds: float = 6
    campaign_seconds: float = 7
    within: float = 15
    good: float = 97
    may_lose: bool = False
    cut_off: bool = False
    stale_at: str = ""
    in_ci: bool = False
    # Percent of all calls that must be good, including those during the fault.
    good_during: float = 0
    # Every request is answered, whatever is restarted.
    none_lost: bool = False
    # Meanwhile the second verifier answers only 503.
    b_refuses: bool = False
    # If set, some calls get 503, each within this many seconds.
    told_within: float = 0


SCENARIOS = [
    # Processes.
    Scenario("no fault", "", b.nothing, seconds=4, within=2, good_during=97, none_lost=True),
    Scenario("kill -9 a worker again and again", "RF-1", b.kill_workers, campaign_seconds=300,
             within=5, good=99.5, good_during=99.5),
    Scenario("kill -9 the master, started again", "RF-2", b.kill_masters, campaign_seconds=30,
             within=10),
    Scenario("kill -9 the registry, started again", "RF-2", b.kill_the_registry, within=10),
    Scenario("SIGTERM, one after the other", "RF-18", b.roll, good_during=100, none_lost=True),
    Scenario("kill -9 after Redis judged", "RF-1", b.die_at("verify.after_judge"),
             campaign_seconds=30),
    Scenario("kill -9 around a payment's commit", "RF-1",
             b.die_at("verify.after_hold", "verify.after_debit", "verify.after_commit"),
             campaign_seconds=60),
    Scenario("kill -9 the jobs, again and again", "", b.kill_jobs, campaign_seconds=15),
    Scenario("no jobs", "", b.stop_jobs, b.start_jobs, good_during=95),
    Scenario("two of the jobs", "", b.two_jobs, good_during=95),
    Scenario("two of everything, one of each killed", "RF-1 RF-2", b.two_of_everything, seconds=9,
             campaign_seconds=15),
    Scenario("asleep while the home moves", "RF-5", b.sleep_through_a_move, within=30,
             cut_off=True),
    Scenario("an epoch begins by command", "EN-7", b.begin_an_epoch, within=15),
    Scenario("one clock 10 s ahead", "", b.clock_off("+10s"), b.clock_right, within=20,
             b_refuses=True),
    Scenario("one clock 10 s behind", "", b.clock_off("-10s"), b.clock_right, within=20,
             b_refuses=True),
    # Redis.
    Scenario("kill -9 Redis, started empty", "RF-5 EN-7", b.kill_redis, b.start_redis, seconds=4,
             within=EPOCH_SECONDS, may_lose=True, in_ci=True),
    Scenario("kill -9 Redis, started with its log", "RF-5", b.kill_redis_that_writes,
             b.start_redis_that_wrote, seconds=4, within=EPOCH_SECONDS, may_lose=True),
    Scenario("kill -9 Redis, started with an old copy", "RF-5", b.kill_redis_with_an_old_copy,
             b.start_redis_from_the_copy, seconds=4, within=EPOCH_SECONDS, may_lose=True),
    Scenario("FLUSHALL", "RF-5", b.flush_redis, within=EPOCH_SECONDS, may_lose=True),
    Scenario("Redis frozen", "RF-6 EN-7 RV-3", b.freeze_redis, b.thaw_redis, seconds=8,
             campaign_seconds=30, within=EPOCH_SECONDS),
    Scenario("CLIENT PAUSE", "RF-6", b.redis_says("CLIENT", "PAUSE", 3000, "ALL"),
             within=EPOCH_SECONDS),
    Scenario("Redis is read-only", "EN-7", b.redis_says("REPLICAOF", "127.0.0.1", "1"),
             b.redis_is_told("REPLICAOF", "NO", "ONE"), seconds=6, campaign_seconds=25,
             within=EPOCH_SECONDS),
    Scenario("Redis is full", "EN-7 RF-21", b.redis_says("CONFIG", "SET", "maxmemory", "500kb"),
             b.redis_is_told("CONFIG", "SET", "maxmemory", "0"), seconds=6, campaign_seconds=45,
             within=EPOCH_SECONDS),
    Scenario("one verifier: Redis 0.2 s away", "RF-8", b.cut_redis("delay 0.1"), b.mend,
             within=EPOCH_SECONDS),
    Scenario("one verifier: Redis takes and does not answer", "RF-8 RF-6", b.cut_redis("noreply"),
             b.mend, within=EPOCH_SECONDS),
    Scenario("one verifier: Redis out of reach", "RF-8", b.cut_redis("blackhole"), b.mend,
             within=EPOCH_SECONDS),
    Scenario("one verifier: Redis resets", "RF-8", b.cut_redis("reset"), b.mend,
             within=EPOCH_SECONDS),
    # PostgreSQL.
    Scenario("kill -9 PostgreSQL, started again", "RF-3", b.kill_database, seconds=2, within=60,
             cut_off=True),
    Scenario("PostgreSQL is ended at once, again and again", "RF-30", b.end_database_at_once,
             within=60, cut_off=True),
    Scenario("PostgreSQL frozen", "RF-4 RF-25", b.freeze_database, b.thaw_database, seconds=8,
             campaign_seconds=30, within=30, cut_off=True, stale_at="ab"),
    Scenario("PostgreSQL lets nobody in", "RF-4 RF-12", b.freeze_the_door, b.thaw_database,
             seconds=8, campaign_seconds=15, within=30, cut_off=True),
    Scenario("PostgreSQL ends every connection", "RF-8", b.end_backends, within=20),
    Scenario("no connection is left", "RF-12", b.use_up_connections, b.clear, within=20,
             cut_off=True),
    Scenario("one verifier: PostgreSQL 0.2 s away", "RF-8", b.cut_database("delay 0.1"), b.mend,
             within=20),
    Scenario("one verifier: PostgreSQL takes and does not answer", "RF-8",
             b.cut_database("noreply"), b.mend, within=30, cut_off=True),
    Scenario("one verifier: PostgreSQL out of reach", "RF-8 RF-25", b.cut_database("blackhole"),
             b.mend, seconds=8, campaign_seconds=15, within=30, cut_off=True, stale_at="b"),
    Scenario("one verifier: PostgreSQL resets", "RF-8", b.cut_database("reset"), b.mend, within=30,
             cut_off=True),
    Scenario("writing events takes 5 s", "RF-21", b.slow_events, b.quick_events, seconds=12,
             campaign_seconds=30, within=30, none_lost=True, told_within=TOLD_SECONDS),
    Scenario("the disk of PostgreSQL is full", "RF-10", b.fill_the_disk, b.empty_the_disk,
             within=60, cut_off=True),
    # Both.
    Scenario("one verifier: both out of reach", "RF-25", b.cut_both, b.mend, seconds=8,
             campaign_seconds=15, within=EPOCH_SECONDS, cut_off=True, stale_at="b"),
    Scenario("both frozen", "RF-25", b.freeze_all, b.thaw_all, seconds=8, campaign_seconds=15,
             within=EPOCH_SECONDS, cut_off=True, stale_at="ab"),
]  # fmt: skip
# On a three-node cluster.
OF_A_CLUSTER = [
    Scenario("a cluster: one node killed, started empty", "RF-5", b.kill_redis, b.start_redis,
             seconds=4, within=EPOCH_SECONDS, may_lose=True),
    Scenario("a cluster: one node frozen", "RF-6", b.freeze_a_node, b.thaw_redis,
             within=EPOCH_SECONDS),
    Scenario("a cluster: all nodes frozen", "RF-6", b.freeze_redis, b.thaw_redis,
             within=EPOCH_SECONDS),
]  # fmt: skip
# With a Redis replica that Sentinels promote. In CI: test_redis_failover.py.
OF_SENTINELS = [
    Scenario("Redis dies, its replica takes over", "RF-5", fail_over, seconds=3,
             within=EPOCH_SECONDS, may_lose=True),
]  # fmt: skip
# With a PostgreSQL replica.
OF_A_REPLICA = [
    Scenario("PostgreSQL dies, its replica takes over", "RF-3", b.fail_over, seconds=0,
             campaign_seconds=60, within=30, cut_off=True),
]  # fmt: skip


def of_this_day(seed: int) -> list[Scenario]:
    """The scenarios of CI, and those of the others whose turn it is in `make long`."""
    every = [*SCENARIOS, *OF_A_CLUSTER, *OF_SENTINELS, *OF_A_REPLICA]
    # The disk can be filled only where a file system may be mounted.
    others = [each for each in every if not each.in_ci and each.inject is not b.fill_the_disk]
    turn = [others[(seed * IN_TURN + number) % len(others)] for number in range(IN_TURN)]
    return [each for each in every if each.in_ci or each in turn]
