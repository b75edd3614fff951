"""Runs the cells whose name contains a given word, or all; writes their rows into CHAOS.md.

`python -m tests.faults.chaos [WORD…]`, as root on Linux; `two-hosts` is the rehearsal of two hosts.
A row keeps the date and commit of its own run, so single cells can be run again. Exit code 1 if a
promise was broken.
"""

import contextlib
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx

from tests.faults.callers import Load, Provider, Record
from tests.faults.chaos.cells import NOT_RUN, Cell, all_cells
from tests.faults.chaos.disks import SLOW_WRITES
from tests.faults.chaos.load import ROLES, Company, Probes
from tests.faults.chaos.servers import folder
from tests.faults.chaos.system import System, system
from tests.faults.outcome_checks import CUT_OFF_SECONDS
from tests.faults.two_hosts import PARTITION_SECONDS, hosts, rehearse
from tests.live import ROOT
from tests.prometheus import SHORTER, Prometheus
from tests.waiting import until

# The word for the rehearsal of two hosts.
TWO_HOSTS = "two-hosts"
PAGE = Path(__file__).with_name("CHAOS.md")
WARM_SECONDS, AFTER_SECONDS, NORMAL_SECONDS = 5.0, 3.0, 120.0
VICTIMS = 12
HEAD = f"""# Chaos

Each process and each server of an installation, broken under load; `python -m tests.faults.chaos`
writes this page. Callers are the SDK's, with its own retries; four probes ask without a retry.

- lasts: how long the part was broken (s);
- calls, failed: of the SDK's callers, over all retries;
- wrong: broken promises (a spent proof or a revoked token accepted, an operation done twice or
  lost, limits, log or ledger that do not fit what callers were told, an answer other than 200 or
  503);
- longest without: the longest time in which a probe had no good answer (503, none, or late), for
  verify, payment, token, page (s);
- normal after: from the repair until all four had eight good answers in a row (s);
- lost: decisions that callers were told and the log lacks (how many it says are lost);
- verify_audit: what `verify_audit` said afterwards;
- alerts: those that fired, by a real Prometheus whose durations are {SHORTER} times shorter.

A cut swallows what is sent (tests/fault_proxy.py): a call that it hits waits for a timeout, 10 s at
the probes, where a network would send lost packets again. A slow disk takes {SLOW_WRITES} writes a
second. [RESULTS.md](../RESULTS.md) has further faults of PostgreSQL and Redis, with two verifiers.
"""
COLUMNS = (
    "| part | fault | lasts | calls | failed | wrong | longest without | normal after | lost "
    "| verify_audit | alerts | run |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)


@dataclass
class Outcome:
    """What one cell showed."""

    lasted: float
    calls: int
    failed: int
    wrong: list[str]
    gaps: dict[str, float]
    normal: float | None
    lost: int
    said_lost: int
    verified: str
    alerts: list[str]

    def line(self, cell: Cell, run: str) -> str:
        cells = [
            cell.target, cell.fault, f"{self.lasted:.0f}", str(self.calls), str(self.failed),
            str(len(self.wrong)), " / ".join(f"{each:.1f}" for each in self.gaps.values()),
            "never" if self.normal is None else f"{self.normal:.1f}",
            f"{self.lost} ({self.said_lost})", self.verified,
            ", ".join(self.alerts).replace("AgentAuth", "") or "none", run,
        ]  # fmt: skip
        return "| " + " | ".join(cells) + " |"


def run_cell(held: System, cell: Cell, rng: random.Random) -> Outcome:
    cell.prepare(held)
    try:
        return _run(held, cell, rng)
    finally:
        cell.restore(held)
        held.say("pass")
        until(lambda: held.home() == ("redis", False) and _is_ready(held), "it is not as before")


def _run(held: System, cell: Cell, rng: random.Random) -> Outcome:
    record = Record()
    company = Company(held, record)
    until(lambda: held.home() == ("redis", False) and _is_ready(held), "it is not ready")
    acting = company.make(*(kind for kind, (*_, count, _) in ROLES.items() for _ in range(count)))
    victims = company.make(*["light"] * VICTIMS)
    lost_before = held.lost()
    with (
        tempfile.TemporaryDirectory() as folder,
        held.prometheus(Path(folder)) as prometheus,
        Probes(held) as probes,
        Load(acting, victims, held.endpoints, record, rng, bound=CUT_OFF_SECONDS) as load,
    ):
        until(lambda: len(prometheus.targets()) == len(held.servers), "Prometheus does not start")
        time.sleep(WARM_SECONDS)
        with contextlib.suppress(AssertionError):
            until(lambda: not prometheus.firing(), "a busy machine fires one without a fault", 20)
        before, alerts, broke = prometheus.firing(), set[str](), time.monotonic()
        try:
            cell.begin(held)
            _watch(prometheus, alerts, broke + cell.seconds)
        finally:
            cell.end(held)
        healed = time.monotonic()
        normal = _normal(probes, prometheus, alerts, healed)
        time.sleep(AFTER_SECONDS)
        ended = time.monotonic()
        load.check()
    until(lambda: held.waiting() == 0, "decisions stay in Redis")
    wrong = [*record.wrong, *(odd for each in probes.kinds for odd in sorted(each.odd(broke)))]
    lost, broken = reckon(held, record, [provider for _, provider in (*acting, *victims)])
    said_lost = held.lost() - lost_before
    if lost > said_lost or (lost and not cell.may_lose):
        wrong.append(f"{lost} decisions are not on record, the log says {said_lost}")
    if normal is None:
        wrong.append(f"not normal after {NORMAL_SECONDS:.0f} s")
    calls = record.between(broke, ended)
    return Outcome(
        healed - broke, len(calls), sum(bool(call.trouble) for call in calls), wrong + broken,
        {each.name: each.gap(broke, ended) for each in probes.kinds}, normal, lost, said_lost,
        verified(held), sorted(alerts - before),
    )  # fmt: skip


def _watch(prometheus: Prometheus, alerts: set[str], until_then: float) -> None:
    while True:
        alerts |= prometheus.firing()
        left = until_then - time.monotonic()
        if left <= 0:
            return
        time.sleep(min(1, left))


def _normal(
    probes: Probes, prometheus: Prometheus, alerts: set[str], healed: float
) -> float | None:
    while time.monotonic() < healed + NORMAL_SECONDS:
        alerts |= prometheus.firing()
        normal = [each.normal_at(healed) for each in probes.kinds]
        if None not in normal:
            return max(at for at in normal if at is not None) - healed
        time.sleep(0.5)
    return None


def _is_ready(held: System) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return all(
            httpx.get(f"{url}/health/ready", timeout=5).status_code == httpx.codes.OK
            for url in (held.url, *held.endpoints().values())
        )
    return False


def reckon(held: System, record: Record, providers: list[Provider]) -> tuple[int, list[str]]:
    """How many acknowledged light decisions are missing, and each broken promise of the oracle."""
    durable = {decision for each in providers for decision in each.done.values()}
    found = {
        str(row[0])
        for row in held.sql("SELECT id FROM audit_event WHERE kind = 'verifier.decision.allowed'")
    }
    told = {"decisions": sorted(durable), "revoked": sorted(record.revoked)}
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle", "-"], cwd=ROOT, env=held.commands.env,
        input=json.dumps(told), capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = [*done.stdout.splitlines(), *done.stderr.splitlines()[-3:]] if done.returncode else []
    return len(record.decisions - durable - found), said


def verified(held: System) -> str:
    state = held.directory / "audit-verified.json"
    done = subprocess.run(
        [sys.executable, "manage.py", "verify_audit", "--state", str(state)], cwd=ROOT,
        env=held.commands.env, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode == 0:
        return "whole"
    return " ".join((done.stdout + done.stderr).split()).replace("|", "/")[:300]


def kept_rows() -> dict[str, str]:
    """The rows of earlier runs, by cell."""
    if not PAGE.exists():
        return {}
    rows = re.findall(r"^\| ([^|]+) \| ([^|]+) \| \d.*$", PAGE.read_text(), re.MULTILINE)
    lines = re.findall(r"^\| [^|]+ \| [^|]+ \| \d.*$", PAGE.read_text(), re.MULTILINE)
    return {f"{part}: {fault}": line for (part, fault), line in zip(rows, lines, strict=True)}


def write(rows: dict[str, str]) -> None:
    order = [cell.name for cell in all_cells()]
    missing = [name for name in order if name not in rows]
    lines = "".join(f"{rows[name]}\n" for name in order if name in rows)
    not_run = "".join(f"- {part}, {fault}: {why}.\n" for part, fault, why in NOT_RUN)
    if missing:
        not_run += f"- without a row yet: {'; '.join(missing)}.\n"
    rest = PAGE.read_text().partition("\n## Two hosts\n") if PAGE.exists() else ("", "", "")
    PAGE.write_text(f"{HEAD}\n{COLUMNS}{lines}\nNot run:\n\n{not_run}{rest[1]}{rest[2]}")


def commit() -> str:
    """The commit that runs, and whether any file but the page itself was changed."""
    page = f":!{PAGE.relative_to(ROOT)}"
    name = subprocess.run(
        ["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    same = subprocess.run(
        ["git", "diff", "--quiet", "HEAD", "--", ".", page], cwd=ROOT, check=False
    )
    return name.stdout.strip() + "-dirty" * bool(same.returncode)


def write_hosts(run: str) -> int:
    """Run the rehearsal of two hosts, and write its section."""
    with folder("agentauth-hosts-") as directory, hosts(directory) as held:
        seen = rehearse(held, seconds=PARTITION_SECONDS)
    page = PAGE.read_text().partition("\n## Two hosts\n")[0] if PAGE.exists() else HEAD
    lines = [f"{run}. tests/faults/two_hosts.py says which host has what.", *seen.lines()]
    said = "".join(f"- {line}\n" for line in lines)
    print(said)
    PAGE.write_text(f"{page.rstrip()}\n\n## Two hosts\n\n{said}")
    return len(seen.accepted_twice) + sum(each.yes for each in seen.replays)


def main(words: list[str]) -> int:
    chosen = [each for each in all_cells() if not words or any(word in each.name for word in words)]
    run, broken = f"{datetime.now(UTC):%Y-%m-%d} {commit()}", 0

    def end(*_: object) -> None:
        """The disks and processes of a run that is ended go with it."""
        chosen.clear()
        sys.exit(143)

    signal.signal(signal.SIGTERM, end)
    if not words or TWO_HOSTS in words:
        broken += write_hosts(run)
    while chosen:
        # Until one cell fails to come to its end: the next ones get a new installation.
        with system() as held:
            while chosen:
                cell = chosen.pop(0)
                try:
                    outcome = run_cell(held, cell, random.Random(24))
                except Exception:  # noqa: BLE001 — the other cells still run
                    traceback.print_exc()
                    print(f"{cell.name}: came to no end", flush=True)
                    broken += 1
                    break
                line = outcome.line(cell, run)
                found = (f"    {each}"[:400] for each in outcome.wrong[:12])
                print(line, *found, sep="\n", flush=True)
                broken += bool(outcome.wrong)
                write({**kept_rows(), cell.name: line})
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
