"""docs/failure-modes.md: each cell of its table is held by tests that exist, and by name."""

import re
from pathlib import Path

import pytest

from tests.test_cases import REFERENCE, names

PAGE = (Path(__file__).resolve().parents[2] / "docs/failure-modes.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The rows of the first table below a heading, its first one with the names of the columns."""
    text = PAGE.partition(f"\n## {heading}\n")[2] or PAGE.partition(f"\n### {heading}\n")[2]
    lines = text.partition("\n|")[2].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in lines]
    return [row for number, row in enumerate(rows) if number != 1]


def cells() -> set[tuple[str, str]]:
    """What is down, and what is asked of it then."""
    head, *rows = table("What is down, and what then")
    downs = [re.findall(r"\*\*(.+?)\*\*", row[0])[0] for row in rows]
    return {(down, act) for down in downs for act in head[1:]}


HELD = {(down, act): REFERENCE.findall(tests) for down, act, tests in table("Held by, cell by cell")[1:]}


def test_each_cell_of_the_table_is_held_and_nothing_else() -> None:
    assert set(HELD) == cells()


@pytest.mark.parametrize("cell", HELD, ids=" - ".join)
def test_what_holds_a_cell_exists(cell: tuple[str, str]) -> None:
    assert HELD[cell]
    for path, name in HELD[cell]:
        assert name in names(path)
