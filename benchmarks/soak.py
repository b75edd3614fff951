"""Tests that a long-running verifier does not grow: `python -m benchmarks.soak --seconds 3600
--rate 4000`.

Chunks of distinct proofs, open-loop, one after the other; after each, memory and open files of
every group of processes are read. Growth counts from the end of the warm-up, when caches are as
full as this crowd fills them: its tokens are renewed every ten minutes and valid for fifteen, so
from the first renewal on two per agent are cached. The mean of ten minutes then is compared with
the last ten, since the jobs' memory varies with each archived segment. Fails (exit 1) if a group
has grown by more than a tenth, has more open files, or any answer was wrong or missing (503, or a
broken connection). Memory is private per process, or proportional if shared (PSS).
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from benchmarks.cpu_time import pids_of
from benchmarks.load_generation import Question, Tally, requests_in, write_requests
from benchmarks.open_loop import open_loop
from benchmarks.system_under_test import MeasuredSystem, machine, place
from benchmarks.verify import READ

AGENTS = 1000
CHUNK_SECONDS = 20
# The registry also decides some, and issues the agents' new tokens.
REGISTRY_CALLS, REGISTRY_RATE = 400, 40.0
MOST_GROWTH = 1.10
MEAN_SECONDS = 600
# Connections are opened on demand, and kept.
MORE_FILES = 4


@dataclass(frozen=True, slots=True)
class Size:
    """Memory and open files of one group of processes."""

    kilobytes: int
    files: int

    @classmethod
    def of(cls, root: int) -> "Size":
        """The process `root` with all its descendants."""
        kilobytes = files = 0
        for pid in pids_of(root):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kilobytes += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
            files += len(list(Path(f"/proc/{pid}/fd").iterdir()))
        return cls(kilobytes, files)

    @classmethod
    def mean(cls, sizes: list["Size"]) -> "Size":
        """The mean of at least one."""
        return cls(
            round(fmean(each.kilobytes for each in sizes)),
            round(fmean(each.files for each in sizes)),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seconds", type=int, default=3600, help="seconds to measure after the warm-up"
    )
    parser.add_argument("--warm-seconds", type=int, default=1300)
    parser.add_argument("--rate", type=float, default=3000, help="calls a second to the verifier")
    parser.add_argument("--connections", type=int, default=16)
    given = parser.parse_args()
    os.environ.pop("DATABASE_URL", None)
    wish = {
        "agents": AGENTS,
        "capabilities": [READ],
        "envelope": {"max_requests_per_minute": 6_000},
    }
    print(f"{machine()}. {' '.join(sys.argv[1:])}\n", flush=True)
    with place(database="postgres", lean=True, wish=wish) as there:
        there.registry.start()
        try:
            problems = soak(there, given)
        finally:
            there.registry.stop()
    print("\n".join(problems) or "as large as before, and nothing wrong", flush=True)
    sys.exit(bool(problems))


def soak(there: MeasuredSystem, given: argparse.Namespace) -> list[str]:
    """Print a row every minute or so; returns what is not as it should be."""
    assert there.server.process
    assert there.registry.process
    groups = {
        "verifier": there.server.process.pid,
        "registry": there.registry.process.pid,
        "jobs": there.others["jobs"],
    }
    print(
        "| s | calls | p50 ms | p99 ms | wrong | 503 or none | "
        + " | ".join(f"{name} MB, files" for name in groups)
        + " |"
    )
    print("|---" * (6 + len(groups)) + "|", flush=True)
    began, calls, wrong, unanswered, chunk = time.monotonic(), 0, 0, 0, 0
    seen: list[tuple[float, dict[str, Size]]] = []
    while (elapsed := time.monotonic() - began) < given.warm_seconds + given.seconds:
        tally = ask(
            there, there.server.url, int(given.rate * CHUNK_SECONDS), given.rate, given.connections
        )
        other = ask(there, there.registry.url, REGISTRY_CALLS, REGISTRY_RATE, 4)
        calls += tally.answered + other.answered
        wrong += tally.wrong + other.wrong
        unanswered += sum(each.not_2xx + each.errors for each in (tally, other))
        now = {name: Size.of(root) for name, root in groups.items()}
        seen.append((elapsed, now))
        chunk += 1
        if chunk % 4 == 1:
            sizes = " | ".join(
                f"{size.kilobytes / 1024:.1f}, {size.files}" for size in now.values()
            )
            print(
                f"| {elapsed:.0f} | {calls} | {tally.p50_ms:.1f} | {tally.p99_ms:.1f} | "
                f"{wrong} | {unanswered} | {sizes} |",
                flush=True,
            )
    problems = (
        [f"{wrong} answers were wrong, {unanswered} were 503 or none"]
        if wrong or unanswered
        else []
    )
    first = [sizes for at, sizes in seen if 0 <= at - given.warm_seconds < MEAN_SECONDS]
    last = [sizes for at, sizes in seen if at > elapsed - MEAN_SECONDS]
    return problems + [each for name in groups for each in growth(name, first, last)]


def growth(name: str, first: list[dict[str, Size]], last: list[dict[str, Size]]) -> list[str]:
    """Print the growth of one group; returns what is not as it should be."""
    before = Size.mean([sizes[name] for sizes in first])
    after = Size.mean([sizes[name] for sizes in last])
    print(
        f"{name}: {before.kilobytes / 1024:.1f} to {after.kilobytes / 1024:.1f} MB, "
        f"{before.files} to {after.files} files"
    )
    problems = []
    if after.kilobytes > before.kilobytes * MOST_GROWTH:
        problems.append(f"{name} has grown by {after.kilobytes / before.kilobytes - 1:.0%}")
    if after.files > before.files + MORE_FILES:
        problems.append(f"{name} has {after.files - before.files} files more open")
    return problems


def ask(there: MeasuredSystem, url: str, calls: int, rate: float, connections: int) -> Tally:
    """One chunk of distinct proofs."""
    files = write_requests(there.directory, there.people(), Question(READ), url=url, calls=calls)
    return open_loop(url, requests_in(files), rate=rate, batch=1, connections=connections)[0]


if __name__ == "__main__":
    main()
