"""CPU time of groups of processes, from /proc, and a description of the machine.

Each group is one process with all its descendants.
"""

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from nacl import bindings

CHECKS: Final = 500
TICKS = os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Its running child processes; none if it has ended."""
    found: list[int] = []
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += map(int, (thread / "children").read_text().split())
    return found


def pids_of(root: int) -> list[int]:
    """The process and all its running descendants."""
    return [root, *(pid for child in children(root) for pid in pids_of(child))]


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """User and system seconds of each group so far; ended children count once waited for."""
    parents, ticks = {}, {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue  # the process ended between listing and reading
        pid = int(stat.parent.name)
        parents[pid] = int(fields[1])
        # utime, stime, and both of the children that were waited for.
        ticks[pid] = sum(map(int, fields[11:15]))
    return {
        name: sum(spent for pid, spent in ticks.items() if _descends(pid, root, parents)) / TICKS
        for name, root in roots.items()
    }


def _descends(pid: int, root: int, parents: Mapping[int, int]) -> bool:
    while pid not in {0, root}:
        pid = parents.get(pid, 0)
    return pid == root


def parent_of(pid: int) -> int:
    """The parent of this process."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def check_us() -> float:
    """CPU µs of a bare Ed25519 check now, the cores' mean: other virtual machines may double it."""
    public, private = bindings.crypto_sign_keypair()
    signed, cores = bindings.crypto_sign(bytes(400), private), os.sched_getaffinity(0)
    taken = []
    try:
        for core in cores:
            os.sched_setaffinity(0, {core})
            began = time.process_time()
            for _ in range(CHECKS):
                bindings.crypto_sign_open(signed, public)
            taken.append((time.process_time() - began) / CHECKS * 1e6)
    finally:
        os.sched_setaffinity(0, cores)
    return statistics.mean(taken)


def machine() -> str:
    """The machine's hardware, without its name."""
    info = Path("/proc/cpuinfo").read_text().splitlines()
    models = (line.partition(":")[2].split() for line in info if line.startswith("model name"))
    memory = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    model = " ".join(next(models, [platform.machine()]))
    return f"{os.cpu_count()} cores ({model}), {memory} GB, Python {platform.python_version()}"
