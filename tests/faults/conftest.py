"""At the end of a run, prints what it saw and writes it to the file in FAULTS_TABLE."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import CAMPAIGN, fresh_database
from tests.faults.table import Results

# Test ids that have passed in this process.
PASSED: list[str] = []
FAILED: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        FAILED.append(report.nodeid)
    elif report.when == "call" and report.passed:
        PASSED.append(report.nodeid)


@pytest.fixture(scope="session")
def results() -> Iterator[Results]:
    seen = Results(passed=PASSED, failed=FAILED)
    yield seen
    print("\n" + seen.text())
    if path := os.environ.get("FAULTS_TABLE"):
        Path(path).write_text(seen.text())


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("postgres", marks=pytest.mark.postgres),
        *(["sqlite"] if CAMPAIGN else []),
    ],
)
def database_url(request: pytest.FixtureRequest) -> str:
    """As elsewhere, but SQLite runs only in the campaign: CI runs a sample."""
    if request.param == "sqlite":
        return ""
    name = "faults_" + request.module.__name__.rsplit(".", 1)[-1]
    return fresh_database(request.getfixturevalue("postgres_url"), name)
