"""What docs/capacity.md computes with: measured figures, fitted costs, sums and queues.

Every figure comes from a file of benchmarks/results/.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

from benchmarks.capacity_simulation import Costs, Result, simulate
from benchmarks.result_file import read_result

# CPU is planned up to this share, so that a burst or a lost host does not overload the others.
PLANNED: Final = 0.6
DAY: Final = 86_400
MONTH: Final = 30 * DAY
# Months that the database keeps: the default of `drop_audit_partitions`. The archive keeps all.
KEPT_MONTHS: Final = 12
MICRO: Final = 1e-6
# p99: the share of calls that wait longer.
SLOWEST: Final = 0.01


@dataclass(frozen=True, slots=True)
class Prices:
    """What a unit costs, in one currency; `copies` is how often the database is stored and run."""

    vcpu_hour: float = 0.04
    disk_gb_month: float = 0.10
    archive_gb_month: float = 0.02
    copies: float = 2


# What Redis spends on a call. At 15,000 verifications a second, Redis and the log take 0.85 cores
# (docs/adr/0039-missed-goals-of-the-hot-path.md), of which the log takes its published share.
REDIS_SHARE: Final = 0.85
REDIS_AT: Final = 15_000


@cache
def points() -> list[dict[str, Any]]:
    """The measured points: rows of benchmarks/README.md, quoted in results/published.json."""
    found: list[dict[str, Any]] = read_result("published")["points"]
    return found


def point(part: str, workers: int, connections: int) -> dict[str, Any]:
    """One measured point."""
    [found] = [
        each
        for each in points()
        if (each["part"], each["workers"], each["connections"]) == (part, workers, connections)
    ]
    return found


def log_us() -> float:
    """CPU µs of an event after the answer: the jobs and PostgreSQL."""
    return published("event_jobs_us") + published("event_postgres_us")


def redis_us() -> float:
    """CPU µs of Redis for a call."""
    return REDIS_SHARE / REDIS_AT * 1e6 - log_us()


@cache
def client_us() -> float:
    """CPU µs of the load generator for a call, which was not measured.

    Fitted: what is left of both cores at the highest rate, at which they are busy.
    """
    full = point("lean", 2, 12)
    return float(cores() / full["rate"] * 1e6 - full["server_us"] - redis_us() - log_us())


def read_costs(measured: dict[str, Any]) -> Costs:
    """Of a verification that Redis decides."""
    return Costs(client_us(), measured["server_us"], redis_us(), log_us())


@cache
def payment_costs() -> Costs:
    """Of a payment. CPU is measured: what a group commit costs beside its payments follows from
    two sizes of groups. The time of a flush is fitted to the rate at 16 connections.
    """
    few, many = point("durable", 2, 16), point("durable", 2, 64)
    costs = Costs(
        client_us(), many["server_us"], redis_us(), log_us(), many["postgres_us"],
        few["server_us"] / 2, few["postgres_us"] / 2, 1.0,
    )  # fmt: skip
    for _ in range(4):
        small, large = (_payments(costs, each["connections"]).group for each in (few, many))
        verifier, each_group = _split(few["server_us"], many["server_us"], small, large)
        postgres, postgres_group = _split(few["postgres_us"], many["postgres_us"], small, large)
        costs = replace(
            costs, verifier=verifier, each_group=each_group,
            postgres=postgres, postgres_group=postgres_group,
        )  # fmt: skip
        costs = _with_flush(costs, few)
    return costs


def _split(few: float, many: float, small: float, large: float) -> tuple[float, float]:
    """What a payment and a group cost, if a payment in a group of n costs payment + group ÷ n."""
    group = max(1.0, (few - many) / max(1e-9, 1 / small - 1 / large))
    return max(1.0, many - group / large), group


def _with_flush(costs: Costs, few: dict[str, Any]) -> Costs:
    """The time of a flush at which the simulation has the measured rate, by bisection."""
    low, high = 0.0, 20.0
    for _ in range(8):
        costs = replace(costs, flush_ms=(low + high) / 2)
        if _payments(costs, few["connections"], calls=400).rate > few["rate"]:
            low = costs.flush_ms
        else:
            high = costs.flush_ms
    return costs


def _payments(costs: Costs, connections: int, calls: int = 800) -> Result:
    return simulate(costs, workers=2, connections=connections, cores=cores(), calls=calls)


def cores() -> int:
    """Of the machine on which the points were measured."""
    return int(read_result("published")["cores"])


def compared() -> Iterator[tuple[dict[str, Any], float]]:
    """Each measured point, and what the simulation says, in calls a second."""
    for each in points():
        costs = payment_costs() if each["part"] == "durable" else read_costs(each)
        yield (
            each,
            simulate(
                costs, workers=each["workers"], connections=each["connections"], cores=cores()
            ).rate,
        )


# What an act takes.


@cache
def footprint() -> dict[str, Any]:
    """What benchmarks/footprint.py measured."""
    found: dict[str, Any] = read_result("footprint")["figures"]
    return found


def act(name: str) -> dict[str, Any]:
    """What it measured of an act."""
    found: dict[str, Any] = footprint()["acts"][name]
    return found


def published(name: str) -> float:
    """A figure of benchmarks/README.md."""
    return float(read_result("published")["figures"][name]["value"])


def table_bytes(name: str) -> float:
    """Bytes in the database, with indexes, of one act."""
    return float(sum(act(name)["table_bytes"].values()))


def archive_bytes(name: str) -> float:
    """Bytes in the archive of one act's events."""
    return float(sum(act(name)["archive_bytes_per_event"].values()) * act(name)["events"])


def spent_us(name: str) -> dict[str, float]:
    """CPU µs of one act by process; empty if it was not measured.

    Verifications and payments as published; tokens and approvals from the footprint.
    """
    if name == "verification":
        server, postgres = point("lean", 1, 10)["server_us"], published("event_postgres_us")
    elif name == "payment":
        many = point("durable", 2, 64)
        server, postgres = many["server_us"], many["postgres_us"]
    else:
        return dict(act(name).get("cpu_us", {}))
    jobs = published("event_jobs_us")
    return {"server": server, "postgres": postgres, "redis": redis_us(), "jobs": jobs}


# Extrapolation.


def servers_for(rate: float, service_us: float) -> int:
    """How many single-threaded processes keep each below PLANNED."""
    return math.ceil(rate * service_us * MICRO / PLANNED)


def waits_p99_ms(rate: float, service_us: float, servers: int) -> float:
    """The wait of an M/M/c queue that 1 % exceed, by Erlang's C; infinite if it is overloaded."""
    load = rate * service_us * MICRO
    if load >= servers:
        return math.inf
    blocked = 1.0
    for count in range(1, servers + 1):
        blocked = load * blocked / (count + load * blocked)
    waiting = servers * blocked / (servers - load * (1 - blocked))
    if waiting <= SLOWEST:
        return 0.0
    return math.log(waiting / SLOWEST) / (servers - load) * service_us / 1000


@dataclass(frozen=True, slots=True)
class Resource:
    """What is used up first, and what one unit of it can do."""

    name: str
    verifications: float
    source: str
    remedy: str


def resources() -> list[Resource]:
    """Ceilings of one unit, by the measured costs of a verification."""
    one, two = point("lean", 1, 10), point("lean", 2, 12)
    return [
        Resource(
            "one verifier process", one["rate"], "`verify`",
            "more processes and hosts; nothing is shared but Redis and PostgreSQL. In place",
        ),
        Resource(
            "one host of two cores with everything on it", two["rate"], "`verify`",
            "PostgreSQL, Redis, jobs and verifiers on hosts of their own. In place",
        ),
        Resource(
            "the log: one process takes events over and numbers them", published("events_rate"),
            "`event_processing`",
            "sharded logs, each with its own numbers, tree and checkpoint. On paper",
        ),
        Resource(
            "one thread of Redis", 1e6 / redis_us(), "ADR 39",
            "Redis Cluster: grants are spread over 16 shards. In place",
        ),
        Resource(
            "one core of PostgreSQL", 1e6 / published("event_postgres_us"),
            "`event_processing`",
            "more cores; then read replicas for lookups, and Citus or a cluster per tenant for "
            "ledgers and events. On paper",
        ),
    ]  # fmt: skip


def monthly_cost(rate: float, prices: Prices) -> dict[str, float]:
    """What `rate` verifications a second cost in a month, once the database holds KEPT_MONTHS."""
    spent = spent_us("verification")
    needed = {name: rate * each * MICRO / PLANNED for name, each in spent.items()}
    needed["postgres"] *= prices.copies
    stored = rate * MONTH * KEPT_MONTHS / 1e9
    return {
        "CPU": sum(needed.values()) * MONTH / 3_600 * prices.vcpu_hour,
        "database": stored * table_bytes("verification") * prices.disk_gb_month * prices.copies,
        "archive": stored * archive_bytes("verification") * prices.archive_gb_month,
    }


def act_cost(name: str, prices: Prices) -> float:
    """What a million of these acts cost: CPU, and storage for KEPT_MONTHS."""
    cpu = sum(spent_us(name).values()) / PLANNED / 3_600 * prices.vcpu_hour
    disk = table_bytes(name) / 1e3 * KEPT_MONTHS * prices.disk_gb_month * prices.copies
    archive = archive_bytes(name) / 1e3 * KEPT_MONTHS * prices.archive_gb_month
    return cpu + disk + archive
