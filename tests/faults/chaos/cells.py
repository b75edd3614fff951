"""What is broken, how, and how it ends; and what cannot be broken here, with the reason."""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from benchmarks.cpu_time import children
from tests.faults.chaos.servers import Process
from tests.faults.chaos.system import System
from tests.live import LiveServer
from tests.waiting import until

Act = Callable[[System], None]
# systemd starts a dead process again after this long (RestartSec of deploy/systemd).
SUPERVISOR_SECONDS: Final = 1.0
LASTS_SECONDS: Final = 10.0
# A step of a clock, in the format of libfaketime. 5 s are allowed.
STEPS: Final = ("+30", "-30", "+3h", "-3h")


@dataclass(frozen=True, slots=True)
class Cell:
    """`target` breaks by `fault`. `begin` breaks it, and `end` repairs it after `seconds`.

    `may_lose`: Redis loses what it holds, so light decisions may be missing from the log.
    `prepare` and `restore` run outside the fault, as for processes that need another clock.
    """

    target: str
    fault: str
    begin: Act
    end: Act
    seconds: float = LASTS_SECONDS
    may_lose: bool = False
    prepare: Act = lambda _: None
    restore: Act = lambda _: None

    @property
    def name(self) -> str:
        return f"{self.target}: {self.fault}"


def _processes(server: LiveServer) -> list[int]:
    assert server.process
    return [server.process.pid, *children(server.process.pid)]


def _signalled(name: str, number: signal.Signals) -> Act:
    def act(held: System) -> None:
        part = getattr(held, name)
        if isinstance(part, Process):
            part.send(number)
            return
        for pid in _processes(part):
            os.kill(pid, number)

    return act


def _killed(name: str) -> Act:
    return lambda held: getattr(held, name).kill()


def _started(name: str) -> Act:
    def act(held: System) -> None:
        part = getattr(held, name)
        part.launch() if isinstance(part, LiveServer) else part.start()

    return act


def _cut(**between: str) -> tuple[Act, Act]:
    return lambda held: held.say("blackhole", **between), lambda held: held.say("pass", **between)


# Processes.


def _of_process(name: str, label: str) -> list[Cell]:
    begin, end = _cut(origin=label)
    found = [
        Cell(label, "kill -9", _killed(name), _started(name), seconds=SUPERVISOR_SECONDS),
        Cell(label, "frozen", _signalled(name, signal.SIGSTOP), _signalled(name, signal.SIGCONT)),
        Cell(label, "cut off from all it calls", begin, end),
    ]
    if label != "jobs":
        begin, end = _cut(target=label)
        found.append(Cell(label, "out of reach", begin, end))
    return found


def _with_clock(name: str) -> tuple[Act, Act]:
    """Start the process with a clock that can be stepped, and without it again."""

    def prepare(held: System) -> None:
        server, clock = getattr(held, name), held.clocks[name]
        clock.set("+0")
        server.stop()
        server.env |= clock.env
        server.start()

    def restore(held: System) -> None:
        server = getattr(held, name)
        server.stop()
        for each in held.clocks[name].env:
            server.env.pop(each)
        server.start()

    return prepare, restore


def _database_with_clock(held: System) -> None:
    held.clocks["postgresql"].set("+0")
    held.database.stop()
    with held.clocks["postgresql"].inherited():
        held.database.start()


def _database_without(held: System) -> None:
    held.database.stop()
    held.database.start()


def _redis_with_clock(held: System) -> None:
    held.clocks["redis"].set("+0")
    held.redis.kill()
    with held.clocks["redis"].inherited():
        held.redis.start()


def _redis_without(held: System) -> None:
    held.redis.kill()
    held.redis.start()


def _clock(name: str, target: str, prepare: Act, restore: Act) -> list[Cell]:
    return [
        Cell(
            target, f"clock {step}{'' if step.endswith('h') else ' s'}",
            lambda held, step=step: held.clocks[name].set(step),  # type: ignore[misc]
            lambda held: held.clocks[name].set("+0"),
            prepare=prepare, restore=restore,
        )
        for step in STEPS
    ]  # fmt: skip


def _disk(name: str, label: str, prepare: Act, restore: Act) -> list[Cell]:
    return [
        Cell(
            label, "disk full", lambda held: held.disks[name].fill(),
            lambda held: held.disks[name].empty(), prepare=prepare, restore=restore,
        ),
        Cell(
            label, "disk slow", lambda held: held.disks[name].slow(),
            lambda held: held.disks[name].fast(), prepare=prepare, restore=restore,
        ),
    ]  # fmt: skip


def _nothing(_: System) -> None:
    pass


# Servers.


def _kill_database(held: System) -> None:
    held.database.kill()


def _start_database(held: System) -> None:
    until(lambda: not held.database.is_running(), "PostgreSQL lives", 30)
    held.database.start()


def _thaw_redis(held: System) -> None:
    held.redis.thaw()


def _empty_database_disk(held: System) -> None:
    held.disks["postgresql"].empty()
    if not held.database.is_running():
        held.database.start()


def _redis_saves(held: System) -> None:
    """Persistence, which is not needed: the only reason for Redis to have a disk."""
    held.redis.client().config_set("appendonly", "yes")


def _redis_saves_nothing(held: System) -> None:
    held.redis.client().config_set("appendonly", "no")


def _servers() -> list[Cell]:
    cells = []
    for target, label in (("postgresql", "PostgreSQL"), ("redis", "Redis"), ("keys", "key service"),
                          ("store", "object store"), ("pgbouncer", "PgBouncer")):  # fmt: skip
        begin, end = _cut(target=target)
        cells.append(Cell(label, "out of reach", begin, end))
    for name, label in (
        ("keys", "key service"),
        ("store", "object store"),
        ("pooler", "PgBouncer"),
    ):
        cells += [
            Cell(label, "kill -9", _killed(name), _started(name)),
            Cell(label, "frozen", _signalled(name, signal.SIGSTOP),
                 _signalled(name, signal.SIGCONT)),
        ]  # fmt: skip
    cells += [
        Cell("PostgreSQL", "kill -9", _kill_database, _start_database, seconds=2),
        Cell("PostgreSQL", "frozen", lambda held: held.database.freeze(),
             lambda held: held.database.thaw()),
        Cell("Redis", "kill -9", lambda held: held.redis.kill(),
             lambda held: held.redis.start(), seconds=2, may_lose=True),
        Cell("Redis", "frozen", lambda held: held.redis.freeze(), _thaw_redis),
        Cell("PostgreSQL", "disk full", lambda held: held.disks["postgresql"].fill(),
             _empty_database_disk),
        Cell("PostgreSQL", "disk slow", lambda held: held.disks["postgresql"].slow(),
             lambda held: held.disks["postgresql"].fast()),
    ]  # fmt: skip
    return cells + _disk("redis", "Redis", _redis_saves, _redis_saves_nothing)


def all_cells() -> list[Cell]:
    cells = [
        *_of_process("web", "web"), *_of_process("verifier", "verifier"),
        *_of_process("jobs", "jobs"), *_of_process("nginx", "nginx"),
        *_disk("hosts", "web, verifier, jobs", _nothing, _nothing),
        *_servers(),
    ]  # fmt: skip
    # nginx forwards to what listens there: "out of reach" of it is its clients' own network.
    cells = [each for each in cells if each.name != "nginx: out of reach"]
    for name in ("web", "verifier", "jobs"):
        cells += _clock(name, name, *_with_clock(name))
    cells += _clock("postgresql", "PostgreSQL", _database_with_clock, _database_without)
    cells += _clock("redis", "Redis", _redis_with_clock, _redis_without)
    order = ["web", "verifier", "jobs", "nginx", "web, verifier, jobs", "PostgreSQL", "Redis",
             "PgBouncer", "key service", "object store"]  # fmt: skip
    return sorted(cells, key=lambda each: order.index(each.target))


NOT_RUN: Final = (
    ("nginx, PgBouncer", "clock", "neither decides anything by the time of day"),
    ("key service", "clock", "OpenBao is a Go program, whose clock libfaketime does not reach"),
    ("object store", "clock, disk", "it is a double in memory, tests/ministack.py"),
    ("key service", "disk", "its Transit keys are read into memory and not written here"),
    ("PgBouncer, nginx", "disk", "PgBouncer has none; nginx writes only logs"),
)  # fmt: skip
