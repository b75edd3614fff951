"""What a campaign saw, as a table."""

from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
_HEAD = """| fault | cases | for s | answers | good during % | good after % | back after s | kills | lost, as the log says | broken |
|---|---|---|---|---|---|---|---|---|---|"""


@dataclass(frozen=True, slots=True)
class Row:
    """One scenario. `recovered` is None where answers did not become good again in time."""

    name: str
    cases: str
    seconds: float
    answers: int
    during: float
    after: float
    recovered: float | None
    kills: int
    lost: int
    broken: list[str]

    def line(self) -> str:
        back = "–" if self.recovered is None else f"{self.recovered:.1f}"
        cells = [
            self.name, self.cases, f"{self.seconds:.0f}", str(self.answers), f"{self.during:.1f}",
            f"{self.after:.1f}", back, str(self.kills), str(self.lost), str(len(self.broken)),
        ]  # fmt: skip
        return "| " + " | ".join(cells) + " |"


def table(rows: list[Row]) -> str:
    total = f"\n{len(rows)} faults, {sum(row.answers for row in rows)} answers, {sum(row.kills for row in rows)} kills.\n"
    return "\n".join([_HEAD, *(row.line() for row in rows)]) + "\n" + total


def write(rows: list[Row], *, keep: bool) -> None:
    """Print the table; with `keep`, also put it beside this file."""
    print("\n" + table(rows))
    if keep:
        head = "# What the faults did\n\nWritten by `make campaign`; what each column means stands in `test_scenarios.py`.\n\n"
        RESULTS.write_text(head + table(rows))
