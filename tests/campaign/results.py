"""Writes tests/campaign/RESULTS.md: what each file of the long tests did, and when.

`tests.run long` loads it as a pytest plugin.
"""

import subprocess
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path

import pytest

FILE = Path(__file__).parent / "RESULTS.md"
ROOT = Path(__file__).parents[2]


class Results:
    """The outcomes and seconds of the tests of each file."""

    def __init__(self) -> None:
        self.began = datetime.now(UTC)
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        file = report.nodeid.partition("::")[0]
        self.seconds[file] += report.duration  # type: ignore[assignment]
        if report.when == "call" or report.failed or report.skipped:
            self.outcomes[file][report.outcome] += 1

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not hasattr(session.config, "workerinput"):
            FILE.write_text(self.text())

    def text(self) -> str:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        lines = [
            "# What the long tests did",
            "",
            f"Written by `make long`, {self.began:%Y-%m-%d %H:%M} UTC, commit {commit}.",
            "",
            "| file | passed | failed | skipped | seconds |",
            "|---|---|---|---|---|",
        ]
        for file, outcomes in sorted(self.outcomes.items()):
            counts = (outcomes["passed"], outcomes["failed"], outcomes["skipped"])
            shown = " | ".join(map(str, counts))
            lines.append(f"| `{file}` | {shown} | {self.seconds[file]:.0f} |")
        return "\n".join([*lines, ""])


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Results(), "long-results")
