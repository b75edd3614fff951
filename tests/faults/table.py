"""The report of a campaign: a row per fault, a line per series of rounds or kills, totals."""

import os
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime

from benchmarks.cpu_time import machine
from tests.conftest import CAMPAIGN

# Chooses the faults CI runs beside the fixed ones: new ones each day, the same ones if set. Written
# back to the environment, so that child processes agree even if the day changes.
SEED = int(os.environ.setdefault("FAULTS_SEED", str(datetime.now(UTC).toordinal())))

_HEAD = """# What the faults did

{date}, {machine}, load average {load:.1f}, commit {commit}.
Written by `make campaign`; what the columns mean: `tests/faults/test_scenarios.py`.
"""
_LOST = """
Decisions lost: light ones that Redis alone held when the fault emptied it
([ADR 13](../../docs/adr/0013-what-redis-may-hold.md)).
They were noticed, and the log says how many; nothing exact is among them.
"""
_COLUMNS = (
    "\n| fault | cases | for s | answers | unanswered | good during % | good after % | back after s"
    " | kills | decisions lost, as the log says | broken |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|\n"
)

# Kind of broken promise → words in its sentence (`reckoning.py`, `tests/oracle.py`).
_KINDS = {
    "acknowledged acts lost": r"not on record|is lost:|are lost,|^an approval without its receipt",
    "doubled": r"^one operation, |^done \d+ times: |^a yes of a human used ",
    "wrongly accepted": (
        r"^a proof passed |^accepted by | times yes within | uses of \d+$|, which ends at "
    ),
}
_OTHERS = "other broken promises"


def totals(broken: list[str]) -> str:
    """How many of each kind."""
    counts = dict.fromkeys([*_KINDS, _OTHERS], 0)
    for sentence in broken:
        counts[
            next((kind for kind, words in _KINDS.items() if re.search(words, sentence)), _OTHERS)
        ] += 1
    return ", ".join(f"{kind} {count}" for kind, count in counts.items())


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario. `recovered` is None if answers did not become good again in time."""

    name: str
    cases: str
    seconds: float
    answers: int
    unanswered: int
    during: float
    after: float
    recovered: float | None
    kills: int
    lost: int
    broken: list[str]
    ended: datetime = field(default_factory=lambda: datetime.now(UTC))

    def line(self) -> str:
        back = "–" if self.recovered is None else f"{self.recovered:.1f}"
        cells = [
            self.name, self.cases, f"{self.seconds:.0f}", str(self.answers), str(self.unanswered),
            f"{self.during:.1f}", f"{self.after:.1f}", back, str(self.kills), str(self.lost),
            str(len(self.broken)),
        ]  # fmt: skip
        return "| " + " | ".join(cells) + " |"


@dataclass
class Results:
    """Everything one run saw."""

    rows: list[Row] = field(default_factory=list)
    # Lines of the tests beside the scenarios.
    lines: list[str] = field(default_factory=list)
    kills: int = 0
    # Passed fault tests, by name.
    passed: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    began: datetime = field(default_factory=lambda: datetime.now(UTC))

    def text(self) -> str:
        """All of it as a page."""
        ended = datetime.now(UTC)
        head = _HEAD.format(
            date=f"{self.began:%Y-%m-%d}, {self.began:%H:%M} to {ended:%H:%M} UTC",
            machine=machine(),
            load=os.getloadavg()[2],
            commit=commit(),
        )
        total = (
            f"{len(self.rows)} faults, {sum(row.answers for row in self.rows)} answers, "
            f"{self.kills + sum(row.kills for row in self.rows)} kills, "
            f"{totals([sentence for row in self.rows for sentence in row.broken])}. "
            f"Tests: {len(self.passed)} passed, {len(self.failed)} "
            f"failed{': ' if self.failed else ''}" + ", ".join(self.failed) + "."
        )
        table = (
            _COLUMNS + "".join(f"{row.line()}\n" for row in self.rows) + _LOST if self.rows else ""
        )
        if self.rows and not CAMPAIGN:
            took = (self.rows[-1].ended - self.began).total_seconds()
            total += f" The sample of FAULTS_SEED={SEED} took {took:.0f} s."
        lines = "\n" + "".join(f"- {line}\n" for line in self.lines) if self.lines else ""
        return f"{head}{table}{lines}\n{total}\n"


def commit() -> str:
    """The commit, and whether the tree has changes."""
    said = ("git", "describe", "--always", "--dirty", "--exclude=*")
    return (
        subprocess.run(said, capture_output=True, text=True, check=False).stdout.strip()
        or "unknown"
    )
