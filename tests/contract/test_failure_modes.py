"""docs/failure-modes.md: each row and each act has existing tests, and no required row is missing.

tests/FAILURES.md names the tests.
"""

import re
from pathlib import Path

import pytest

from tests.test_cases import REFERENCE, names
from tests.vectors.shared import SECURITY

# Each required row, as section 2 of the shared cases calls it, and the page's rows that answer it.
ROWS = {
    "Redis": {"Redis is down"},
    "PostgreSQL": {"PostgreSQL is down"},
    "Both": {"Redis and PostgreSQL are down"},
    "KMS": {"the key backend is down"},
    "Audit insert fails": {"events cannot be written"},
    "Sequencer dead": {"no process numbers events"},
    "Witness / object store": {"the external store is down", "a witness is down"},
    "Celery / broker": {"Celery's broker is down"},
    "Clock off > 5 s from DB": {"a host's clock is off"},
}
# Rows for which each act has a test of its own, besides the required ones.
TRIED = set().union(*ROWS.values()) | {
    "PostgreSQL does not answer",
    "no process empties Redis",
    "no process records ends",
    "a worker process dies",
    "the database was set back",
    "PostgreSQL was started",
}
# Each required column, and the act that answers it.
COLUMNS = {
    "Verify": "verify",
    "Issue token": "tokens",
    "Approve / revoke": "approvals, revocations",
    "Envelope": "limits of a grant",
    "Audit": "the log",
    # Not an act: "Rate limits against abuse are no part of this".
    "Anti-abuse limits": "",
}
ACTS = set(filter(None, COLUMNS.values())) | {"pages"}

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/failure-modes.md").read_text()
TESTS = (ROOT / "tests/FAILURES.md").read_text()
FAILURES = re.findall(r"^\| \*\*(.+?)\*\*", PAGE, re.MULTILINE)
# A promise of all rows.
ALL = "all"


def table(heading: str, page: str = TESTS) -> list[list[str]]:
    """The rows of the first table below a heading; the first row holds the column names."""
    text = page.partition(f"\n## {heading}\n")[2]
    lines = text.partition("\n|")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for number, row in enumerate(rows) if number != 1]


def held(heading: str) -> dict[tuple[str, str], list[tuple[str, str]]]:
    """(failure, act or promise) → the tests, each as path and name."""
    rows = table(heading)[1:]
    found = {(failure, what): REFERENCE.findall(tests) for failure, what, tests in rows}
    assert len(found) == len(rows), "a row stands in the table twice"
    return found


BY_ACT, PROMISES = held("Act by act"), held("Promises")


def test_each_failure_has_one_row_with_what_to_do() -> None:
    assert len(FAILURES) == len(set(FAILURES)) > 40
    rows = [line for line in PAGE.splitlines() if line.startswith("| **")]
    assert all(len(row.strip("|").split(" | ")) == 4 for row in rows)
    assert len(rows) == len(FAILURES)


def test_each_failure_has_tests_and_nothing_else_has() -> None:
    named = {failure for failure, _ in BY_ACT} | {failure for failure, _ in PROMISES}
    assert named - {ALL} == set(FAILURES)


def test_each_act_is_tried_during_each_of_these_failures() -> None:
    assert set(BY_ACT) == {(failure, act) for failure in TRIED for act in ACTS}


@pytest.mark.parametrize("held", [BY_ACT, PROMISES], ids=["act by act", "promises"])
def test_what_holds_a_failure_exists(held: dict[tuple[str, str], list[tuple[str, str]]]) -> None:
    assert [row for row, tests in held.items() if not tests] == []
    missing = {
        f"{path}::{name}"
        for tests in held.values()
        for path, name in tests
        if name not in names(path)
    }
    assert missing == set()


@pytest.mark.vectors
def test_each_row_and_column_that_was_asked_for_is_on_the_page() -> None:
    assert SECURITY
    head, *rows = table("2. Fail-open / fail-closed", (SECURITY / "cases.md").read_text())
    assert {row[0] for row in rows} == set(ROWS)
    assert set(head[1:]) == set(COLUMNS)


def test_log_lines_on_the_page_are_those_the_code_writes() -> None:
    """An operator searches the log for them. `…` stands for what differs; metrics are left out."""
    quoted = re.findall(r"`((?!agentauth_|…_)[^`]*…[^`]*)`", PAGE)
    parts = {part.strip() for line in quoted for part in line.split("…")} - {""}
    source = "".join(
        path.read_text()
        for app in ("audit", "kms")
        for path in (ROOT / app).rglob("*.py")
        if "tests" not in path.relative_to(ROOT).parts
    )
    assert {part for part in parts if part not in source} == set()
    assert len(parts) > 3


def test_what_answers_a_row_or_column_is_on_the_page() -> None:
    assert set().union(*ROWS.values()) <= set(FAILURES)
    assert "Rate limits against abuse are no part of this" in PAGE
