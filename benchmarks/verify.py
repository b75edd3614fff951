"""Measures `POST /v1/verify` through the DRF view on the embedded default: `make bench`, alone on the machine.

Signs distinct proofs right before each run, sends them over kept-open connections, counts wrong answers, and reads the
server's CPU from /proc. Prints one Markdown row per run for benchmarks/README.md; the median of the runs is last.
"""

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests import postgres
from tests.actors import Scene, scene
from tests.live import LiveRegistry

READ = {"type": "read", "resource": "calendar"}
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Run:
    """One run: verifications a second, latencies in ms, CPU of all server processes per request in µs."""

    rate: float
    p50: float
    p99: float
    cpu_us: float
    wrong: int


def server_cpu_seconds(registry: LiveRegistry) -> float:
    """User and system time of the server's process group so far."""
    assert registry.process is not None
    total = 0.0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process ended between listing and reading
        if int(fields[2]) == registry.process.pid:
            total += (int(fields[11]) + int(fields[12])) / TICKS
    return total


def run(place: Scene, *, requests: int, connections: int) -> Run:
    """Send `requests` distinct verifications over `connections` connections."""
    token = place.token()
    bodies = [place.question(token, READ) for _ in range(requests)]
    auth = (place.client_id, place.client_secret)

    def drive(share: list[dict[str, object]]) -> list[tuple[float, bool]]:
        results = []
        with httpx.Client(base_url=place.registry.url, auth=auth, timeout=60) as client:
            for body in share:
                began = time.perf_counter()
                answer = client.post("/v1/verify", json=body)
                right = answer.status_code == httpx.codes.OK and answer.json()["valid"]
                results.append((time.perf_counter() - began, right))
        return results

    before, began = server_cpu_seconds(place.registry), time.perf_counter()
    with ThreadPoolExecutor(connections) as pool:
        shares = pool.map(drive, [bodies[index::connections] for index in range(connections)])
        results = [result for share in shares for result in share]
    seconds = time.perf_counter() - began
    times = sorted(duration * 1000 for duration, _ in results)
    return Run(
        rate=len(results) / seconds,
        p50=times[len(times) // 2],
        p99=times[len(times) * 99 // 100],
        cpu_us=(server_cpu_seconds(place.registry) - before) / len(results) * 1e6,
        wrong=sum(not right for _, right in results),
    )


def measure(name: str, database_url: str, *, requests: int, connections: int, runs: int) -> None:
    """Print a row per run and the medians for one database."""
    with tempfile.TemporaryDirectory(prefix="agentauth-bench-") as directory:
        registry = LiveRegistry(Path(directory), database_url=database_url, workers=2)
        registry.prepare()
        registry.start()
        try:
            place = scene(registry, capabilities=[READ], envelope={})
            run(place, requests=100, connections=connections)
            measured = [run(place, requests=requests, connections=connections) for _ in range(runs)]
        finally:
            registry.stop()
    for label, row in [
        *((str(index + 1), row) for index, row in enumerate(measured)),
        ("median", medians(measured)),
    ]:
        print(
            f"| {name} | {label} | {row.rate:.0f} | {row.p50:.1f} | {row.p99:.1f} | {row.cpu_us:.0f} | {row.wrong} |"
        )


def medians(rows: list[Run]) -> Run:
    """Each figure's median; wrong answers are added up."""
    return Run(
        rate=statistics.median(row.rate for row in rows),
        p50=statistics.median(row.p50 for row in rows),
        p99=statistics.median(row.p99 for row in rows),
        cpu_us=statistics.median(row.cpu_us for row in rows),
        wrong=sum(row.wrong for row in rows),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--connections", type=int, default=8)
    parser.add_argument("--runs", type=int, default=5)
    given = vars(parser.parse_args())
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}; load generator on the same cores"
    )
    print(
        "| database | run | verify/s | p50 ms | p99 ms | server CPU µs | wrong |\n|---|---|---|---|---|---|---|"
    )
    measure("SQLite", "", **given)
    if postgres.binaries():
        with postgres.cluster() as url:
            measure("PostgreSQL", url, **given)
    sys.stdout.flush()


if __name__ == "__main__":
    main()
