"""docs/failure-modes.md: each cell names existing tests, and no required row is missing."""

import re
from pathlib import Path

import pytest

from tests.test_cases import REFERENCE, names
from tests.vectors.shared import SECURITY

# Each required row, as section 2 of the shared cases calls it, and the page's rows that answer it.
ROWS = {
    "Redis": {"Redis"},
    "PostgreSQL": {"the database"},
    "Both": {"Redis and the database"},
    "KMS": {"the key backend"},
    "Audit insert fails": {"writing an event"},
    "Sequencer dead": {"the sequencer"},
    "Witness / object store": {"the external store", "a witness"},
    "Celery / broker": {"Celery's broker"},
    "Clock off > 5 s from DB": {"the clock of a host"},
}
# Each required column, and the page's column that answers it.
COLUMNS = {
    "Verify": "verify",
    "Issue token": "issue a token",
    "Approve / revoke": "approve, revoke",
    "Envelope": "limits of a grant",
    "Audit": "the log",
    # Not a column: "Rate limits against abuse are no part of this".
    "Anti-abuse limits": "",
}

PAGE = (Path(__file__).resolve().parents[2] / "docs/failure-modes.md").read_text()


def table(heading: str, page: str = PAGE) -> list[list[str]]:
    """The rows of the first table below a heading; the first row holds the column names."""
    text = page.partition(f"\n## {heading}\n")[2] or page.partition(f"\n### {heading}\n")[2]
    lines = text.partition("\n|")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for number, row in enumerate(rows) if number != 1]


def cells() -> set[tuple[str, str]]:
    """(what is down, what is asked of it meanwhile)"""
    head, *rows = table("What is down, and what then")
    downs = [re.findall(r"\*\*(.+?)\*\*", row[0])[0] for row in rows]
    return {(down, act) for down in downs for act in head[1:]}


HELD = {
    (down, act): REFERENCE.findall(tests) for down, act, tests in table("Held by, cell by cell")[1:]
}


def test_each_cell_of_the_table_is_held_and_nothing_else() -> None:
    assert set(HELD) == cells()


@pytest.mark.parametrize("cell", HELD, ids=" - ".join)
def test_what_holds_a_cell_exists(cell: tuple[str, str]) -> None:
    assert HELD[cell]
    for path, name in HELD[cell]:
        assert name in names(path)


@pytest.mark.vectors
def test_each_row_and_column_that_was_asked_for_is_on_the_page() -> None:
    assert SECURITY
    head, *rows = table("2. Fail-open / fail-closed", (SECURITY / "cases.md").read_text())
    assert {row[0] for row in rows} == set(ROWS)
    assert set(head[1:]) == set(COLUMNS)


def test_what_answers_a_row_or_column_is_on_the_page() -> None:
    downs, acts = {down for down, _ in cells()}, {act for _, act in cells()}
    assert set().union(*ROWS.values()) <= downs
    assert set(filter(None, COLUMNS.values())) <= acts
    assert "Rate limits against abuse are no part of this" in PAGE
