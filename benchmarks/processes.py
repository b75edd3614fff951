"""CPU time of groups of processes, read from /proc: each group is one process with all that descend from it."""

import os
from collections.abc import Mapping
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(roots: Mapping[str, int]) -> dict[str, float]:
    """User and system time so far of each named group, in seconds; of children that ended too, once waited for."""
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
    """The process that started it."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
