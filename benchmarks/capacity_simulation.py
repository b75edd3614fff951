"""A discrete-event simulation of verifiers that share a machine's cores with all other processes.

A process serves its tasks one after the other, and busy processes share the cores equally. A
payment waits for the group commit of its verifier process, as in verifier/stores/group_commit.py:
one group at a time, and the calls that arrive meanwhile share the next one. Not simulated: its
limit of 0.2 s for a group, and retries after a lock. Service times vary by a third around their
mean, with a fixed seed. What else it cannot see is in docs/capacity.md.
"""

import heapq
import itertools
import random
import statistics
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

# `_TOGETHER` in verifier/stores/group_commit.py: a test compares them.
TOGETHER: Final = 32
SPREAD: Final = 1 / 3
MICRO: Final = 1e-6
Callback = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Costs:
    """CPU µs that one call costs each process, on average.

    A call with a group commit costs PostgreSQL `postgres`. Each group costs the verifier
    `each_group`, PostgreSQL `postgres_group`, and waits `flush_ms` for the disk without CPU. These
    four are 0 for a call without a commit. `background` is what the jobs and PostgreSQL spend on
    the call's event after the answer.
    """

    client: float
    verifier: float
    redis: float
    background: float
    postgres: float = 0
    each_group: float = 0
    postgres_group: float = 0
    flush_ms: float = 0


@dataclass(frozen=True, slots=True)
class Result:
    """Calls a second, median latency, and mean calls in a group commit (0 without commits)."""

    rate: float
    p50_ms: float
    group: float


class Machine:
    """Cores, processes and timers."""

    def __init__(self, cores: int) -> None:
        self.now = 0.0
        self._cores = cores
        # Virtual time of processor sharing: the CPU seconds that a process busy from the start
        # would have had. A task ends when it reaches the task's mark.
        self._virtual = 0.0
        self._busy: list[tuple[float, int, Process]] = []
        self._timers: list[tuple[float, int, Callback]] = []
        # Breaks ties: processes and callbacks cannot be compared.
        self._number = itertools.count()

    def begin(self, process: "Process", seconds: float) -> None:
        """Let the process compute for this long."""
        heapq.heappush(self._busy, (self._virtual + seconds, next(self._number), process))

    def after(self, seconds: float, then: Callback) -> None:
        """Call `then` in `seconds`; no core is used meanwhile."""
        heapq.heappush(self._timers, (self.now + seconds, next(self._number), then))

    def step(self) -> None:
        """Go to the next end of a task or timer."""
        speed = min(1.0, self._cores / len(self._busy)) if self._busy else 1.0
        computed = self.now + (self._busy[0][0] - self._virtual) / speed if self._busy else None
        if computed is None or (self._timers and self._timers[0][0] < computed):
            at, _, then = heapq.heappop(self._timers)
            self._virtual += (at - self.now) * speed
            self.now = at
            then()
        else:
            self.now = computed
            self._virtual, _, process = heapq.heappop(self._busy)
            process.end()


class Process:
    """One thread of execution: its tasks run one after the other."""

    def __init__(self, machine: Machine, chance: random.Random) -> None:
        self._machine, self._chance = machine, chance
        self._tasks: deque[tuple[float, Callback]] = deque()

    def do(self, micros: float, then: Callback) -> None:
        """Compute for about this long after the tasks before it, then call `then`."""
        seconds = micros * MICRO * self._chance.uniform(1 - SPREAD, 1 + SPREAD)
        self._tasks.append((seconds, then))
        if len(self._tasks) == 1:
            self._machine.begin(self, seconds)

    def end(self) -> None:
        """The first task has ended."""
        _, then = self._tasks.popleft()
        if self._tasks:
            self._machine.begin(self, self._tasks[0][0])
        then()


@dataclass(slots=True)
class _Verifier:
    """A verifier process, the PostgreSQL process of its committing thread, and its group."""

    process: Process
    postgres: Process
    waiting: list[Callback] = field(default_factory=list)
    is_committing: bool = False


class _Run:
    """`connections` callers, each of which asks again once it has its answer."""

    def __init__(self, costs: Costs, workers: int, connections: int, cores: int) -> None:
        chance = random.Random(7)
        self.costs, self.machine = costs, Machine(cores)
        new = partial(Process, self.machine, chance)
        self.client, self.redis, self.jobs = new(), new(), new()
        self.verifiers = [_Verifier(new(), new()) for _ in range(workers)]
        self.latencies: list[float] = []
        self.groups: list[int] = []
        for number in range(connections):
            self.ask(self.verifiers[number % workers])

    def ask(self, verifier: _Verifier) -> None:
        """One call: half of the client's work before it, half after its answer."""
        began, costs = self.machine.now, self.costs

        def answered() -> None:
            self.latencies.append(self.machine.now - began)
            self.ask(verifier)

        def answer() -> None:
            self.jobs.do(costs.background, lambda: None)
            self.client.do(costs.client / 2, answered)

        def decide() -> None:
            if not costs.each_group:
                verifier.process.do(costs.verifier / 2, answer)
                return
            verifier.waiting.append(lambda: verifier.process.do(costs.verifier / 2, answer))
            self.commit(verifier)

        def check_credentials() -> None:
            verifier.process.do(costs.verifier / 2, lambda: self.redis.do(costs.redis, decide))

        self.client.do(costs.client / 2, check_credentials)

    def commit(self, verifier: _Verifier) -> None:
        """Commit what waits, unless this process commits already."""
        if verifier.is_committing or not verifier.waiting:
            return
        verifier.is_committing = True
        group, verifier.waiting = verifier.waiting[:TOGETHER], verifier.waiting[TOGETHER:]
        self.groups.append(len(group))
        costs = self.costs

        def done() -> None:
            verifier.is_committing = False
            for then in group:
                then()
            self.commit(verifier)

        def flush() -> None:
            self.machine.after(costs.flush_ms / 1000, done)

        def write() -> None:
            micros = costs.postgres_group + costs.postgres * len(group)
            verifier.postgres.do(micros, flush)

        verifier.process.do(costs.each_group, write)


def simulate(
    costs: Costs, *, workers: int, connections: int, cores: int, calls: int = 1_500
) -> Result:
    """Run `calls` calls after a tenth as many to warm up."""
    run = _Run(costs, workers, connections, cores)
    warm = calls // 10
    while len(run.latencies) < warm:
        run.machine.step()
    began, warm_groups = run.machine.now, len(run.groups)
    while len(run.latencies) < warm + calls:
        run.machine.step()
    measured, groups = run.latencies[warm:], run.groups[warm_groups:]
    rate = len(measured) / (run.machine.now - began)
    group = statistics.fmean(groups) if groups else 0.0
    return Result(rate, statistics.median_high(measured) * 1000, group)
