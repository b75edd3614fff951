"""Measures verification: `make bench`, alone on the machine.

Each run: tokens that live long enough, distinct proofs signed right before, a warm-up, then the
measured seconds. Prints Markdown for benchmarks/README.md, which explains the figures.
"""

import argparse
import contextlib
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agentauth.protocol.dpop import WINDOW_SECONDS
from agentauth.protocol.hours_and_periods import DAYS
from benchmarks.cpu_time import check_us
from benchmarks.load_generation import Question, Tally, requests_in, with_wrk, write_requests
from benchmarks.open_loop import open_loop
from benchmarks.system_under_test import WORKERS, MeasuredSystem, machine, place

READ = {"type": "read", "resource": "calendar"}
PAY = {"type": "transact", "resource": "payments", "amount": {"value": "0.01", "currency": "EUR"}}
MAY_PAY = {
    "type": "transact",
    "resource": "payments",
    "max_amount": {"value": "50.00", "currency": "EUR"},
}
BUDGET = {"value": "1000000.00", "currency": "EUR", "period": "total", "zone": "UTC"}
READING = Question(READ)
# Several kinds of act, most with constraints on their arguments.
SEVERAL: list[dict[str, Any]] = [
    {
        "type": "read",
        "resource": "calendar",
        "constraints": {"visibility": {"in": ["busy", "free"]}, "days": {"min": 1, "max": 31}},
    },
    {"type": "read", "resource": "mail/inbox"},
    {
        "type": "write",
        "resource": "files/reports",
        "constraints": {
            "size": {"max": 1_048_576},
            "name": {"prefix": "report-", "max_length": 64},
        },
    },
    {"type": "custom", "namespace": "acme.crm", "name": "find_contacts", "resource": "contacts"},
]
ACTS: list[dict[str, Any]] = [
    {"type": "read", "resource": "calendar/work", "arguments": {"visibility": "busy", "days": 7}},
    {"type": "read", "resource": "mail/inbox"},
    {
        "type": "write",
        "resource": "files/reports/2026",
        "arguments": {"size": 4096, "name": "report-11.txt", "draft": True},
    },
    {"type": "custom", "namespace": "acme.crm", "name": "find_contacts", "resource": "contacts"},
]
ALWAYS = [{"days": list(DAYS), "start": "00:00", "end": "24:00", "zone": "Europe/Berlin"}]
WARM_SECONDS = 3
# Sign this many times what the warm-up's rate needs, so that the seconds run out before the proofs.
SPARE = 1.5
WARM_PROOFS = 40_000
HEAD = (
    "| part | load | run | verify/s | p50 ms | p99 ms | p99.9 ms | CPU µs per verification |"
    f" check µs | ÷ check | wrong | non-2xx | errors |\n{'|---' * 13}|"
)
EVERY_CORE = os.sched_getaffinity(0)


@dataclass(frozen=True, slots=True)
class Part:
    """One thing to measure. `cold`: a freshly started server is asked about each agent once.

    `bulk`: benchmarks/many_agents.py creates agents and tokens.
    """

    database: str
    lean: bool
    question: Question = READING
    capabilities: list[dict[str, Any]] = field(default_factory=lambda: [READ])
    envelope: dict[str, Any] = field(default_factory=dict)
    agents: int = 100
    cold: bool = False
    bulk: bool = False


PAYING = Part(
    "postgres",
    lean=True,
    question=Question(PAY, operation=True),
    capabilities=[MAY_PAY],
    envelope={"budgets": [BUDGET]},
)
PARTS = {
    "drf-sqlite": Part("sqlite", lean=False),
    "drf-postgres": Part("postgres", lean=False),
    "lean": Part("postgres", lean=True),
    "rated": Part("postgres", lean=True, envelope={"max_requests_per_minute": 6_000}, agents=1000),
    "cold": Part("postgres", lean=True, agents=3000, cold=True),
    "batch": Part("postgres", lean=True, question=Question(READ, batch=20)),
    "named": Part("postgres", lean=True, question=Question(READ, named=True)),
    "arguments": Part(
        "postgres",
        lean=True,
        question=Question(ACTS[0], ACTS[1:]),
        capabilities=SEVERAL,
        envelope={"allowed_time_windows": ALWAYS},
    ),
    "many": Part("postgres", lean=True, agents=100_000, bulk=True),
    "durable": PAYING,
    "hot": replace(PAYING, agents=1),
}


@dataclass(frozen=True, slots=True)
class Run:
    """A tally and its figures.

    `judged` verifications in 2xx answers, and right ones a second; CPU µs per verification by group
    of processes; a bare signature check before and after (µs, mean); how late an open-loop client
    sent (p99, ms).
    """

    tally: Tally
    judged: int
    rate: float
    cpu: dict[str, float]
    check_us: float
    late_ms: float = 0.0

    @property
    def checks(self) -> float:
        """The server's CPU as a multiple of a bare signature check at that time."""
        return self.cpu["server"] / self.check_us


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--part", choices=PARTS, action="append", help="repeatable; all parts by default"
    )
    parser.add_argument("--seconds", type=int, default=10, help="seconds of each run")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument(
        "--alg", choices=("EdDSA", "ES256"), default="EdDSA", help="algorithm of the agents' keys"
    )
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument(
        "--rate", type=float, help="calls a second, sent open-loop; without it, as fast as possible"
    )
    pace.add_argument(
        "--half",
        action="store_true",
        help="once as fast as possible, then open-loop at half that rate",
    )
    parser.add_argument("--agents", type=int, help="instead of the part's own number")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, help="number of the verifier's own processes"
    )
    parser.add_argument(
        "--cluster", action="store_true", help="three Redis nodes instead of one server"
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="servers on the first core, the load generator on the last",
    )
    given = parser.parse_args()
    # Each part sets its own.
    os.environ.pop("DATABASE_URL", None)
    if given.pin:
        os.sched_setaffinity(0, {min(EVERY_CORE)})
    print(
        f"{machine()}; load generator on the same machine. "
        f"{' '.join(sys.argv[1:]) or 'All parts.'}\n"
    )
    print(HEAD, flush=True)
    for name in given.part or PARTS:
        measure(name, given)


def measure(name: str, given: argparse.Namespace) -> None:
    """Print a row for each run of one part, and their medians."""
    part = PARTS[name]
    if given.agents:
        part = replace(part, agents=given.agents)
    wish = {
        "agents": part.agents,
        "capabilities": part.capabilities,
        "envelope": part.envelope,
        "alg": given.alg,
    }
    with place(
        database=part.database,
        lean=part.lean,
        wish=wish,
        workers=given.workers,
        cluster=given.cluster,
        bulk=part.bulk,
    ) as there:
        rate, runs = given.rate, []
        if given.half:
            full = run(there, part, given, rate=None)
            print(title(name, given, None), "full", row(full), flush=True)
            rate, runs = full.rate / part.question.batch / 2, [full]
        for number in range(given.runs):
            runs.append(run(there, part, given, rate=rate))
            print(title(name, given, rate), number + 1, row(runs[-1]), flush=True)
        if any(run.tally.wrong + run.tally.not_2xx + run.tally.errors for run in runs):
            # The server's log is deleted with its directory.
            print(
                "".join(there.server.log.read_text().splitlines(keepends=True)[-20:]),
                file=sys.stderr,
            )
    print(title(name, given, rate), "median", medians(runs[-given.runs :]), flush=True)


def title(name: str, given: argparse.Namespace, rate: float | None) -> str:
    """The first cells of a row."""
    load = f"{given.connections} connections" + (f", {rate:.0f} calls/s" if rate else "")
    load += f", {given.workers} processes" if given.workers != WORKERS else ""
    load += ", a cluster" if given.cluster else ""
    load += f", {given.agents:,} agents" if given.agents else ""
    return f"| {name}, {given.alg} | {load} |"


def run(there: MeasuredSystem, part: Part, given: argparse.Namespace, *, rate: float | None) -> Run:
    """One measured run, with its preparation and warm-up."""
    if part.cold:
        there.restart()
        calls, seconds = part.agents, WINDOW_SECONDS
    else:
        files = signed(there, part, WARM_PROOFS // part.question.batch)
        warm, _ = drive(there, part, given, files, seconds=WARM_SECONDS, rate=None)
        each_second = rate or warm.answered / warm.seconds * SPARE
        calls, seconds = int(each_second * given.seconds) + 1, given.seconds
    files = signed(there, part, calls)
    check, before = check_us(), there.cpu()
    tally, late_ms = drive(there, part, given, files, seconds=seconds, rate=rate)
    after = there.cpu()
    judged = (tally.answered - tally.not_2xx) * part.question.batch
    cpu = {name: (after[name] - before[name]) / max(1, judged) * 1e6 for name in after}
    check = (check + check_us()) / 2
    return Run(tally, judged, tally.right(part.question.batch) / tally.seconds, cpu, check, late_ms)


def signed(there: MeasuredSystem, part: Part, calls: int) -> list[Path]:
    """New requests on disk, signed on every core; the agents' turns continue from the last ones."""
    people, first = there.people(), there.calls
    there.calls += calls
    with on_cores(EVERY_CORE):
        return write_requests(
            there.directory,
            people,
            part.question,
            url=there.server.url,
            calls=calls,
            first=first,
        )


def drive(
    there: MeasuredSystem,
    part: Part,
    given: argparse.Namespace,
    files: list[Path],
    *,
    seconds: int,
    rate: float | None,
) -> tuple[Tally, float]:
    """Send them with wrk as fast as they are answered, or open-loop at `rate`.

    Also returns the client's own lateness (p99, ms). Raises RuntimeError if nothing was answered,
    since then there is nothing to measure.
    """
    url, batch, connections = there.server.url, part.question.batch, given.connections
    with on_cores({max(EVERY_CORE)} if given.pin else EVERY_CORE):
        if rate is None:
            driven = (
                with_wrk(url, files, batch=batch, connections=connections, seconds=seconds),
                0.0,
            )
        else:
            driven = open_loop(
                url, requests_in(files), rate=rate, batch=batch, connections=connections
            )
    if not driven[0].answered:
        raise RuntimeError(f"not one call was answered: {driven[0]}")
    return driven


@contextlib.contextmanager
def on_cores(cores: set[int]) -> Iterator[None]:
    """Within the context, this process and its children run on `cores` alone."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def row(run: Run) -> str:
    tally = run.tally
    cpu = ", ".join(f"{name} {micros:,.0f}" for name, micros in run.cpu.items())
    late = f" (client late {run.late_ms:.1f})" if run.late_ms else ""
    return (
        f"| {run.rate:,.0f} | {tally.p50_ms:.1f} | {tally.p99_ms:.1f}{late} | "
        f"{tally.p999_ms:.1f} | {cpu} |"
        f" {run.check_us:.0f} | {run.checks:.1f} | {tally.wrong} | {tally.not_2xx} | "
        f"{tally.errors} |"
    )


def medians(runs: list[Run]) -> str:
    """Each figure's median, rates with their range; errors are added up."""

    def median(figure: Callable[[Run], float]) -> float:
        return statistics.median(map(figure, runs))

    rates = sorted(run.rate for run in runs)
    cpu = ", ".join(f"{name} {median(lambda run: run.cpu[name]):,.0f}" for name in runs[0].cpu)  # noqa: B023
    tallies = [run.tally for run in runs]
    wrong, judged = sum(tally.wrong for tally in tallies), sum(run.judged for run in runs)
    return (
        f"| {median(lambda run: run.rate):,.0f} ({rates[0]:,.0f}–{rates[-1]:,.0f})"
        f" | {median(lambda run: run.tally.p50_ms):.1f} | "
        f"{median(lambda run: run.tally.p99_ms):.1f}"
        f" | {median(lambda run: run.tally.p999_ms):.1f} | {cpu} | "
        f"{median(lambda run: run.check_us):.0f}"
        f" | {median(lambda run: run.checks):.1f} | {wrong} of {judged:,}"
        f" | {sum(tally.not_2xx for tally in tallies)} | {sum(tally.errors for tally in tallies)} |"
    )


if __name__ == "__main__":
    main()
