"""Holds tests/CASES.md to the tests: named tests exist with the case's id, no case is missing."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.vectors.shared import SECURITY

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests/CASES.md"

CASE = r"[A-Z]{2}-(?:OK-)?\d+"
ROW = re.compile(rf"^\| ({CASE}) \| (.+) \|$", re.MULTILINE)
REFERENCE = re.compile(r"`([\w./]+\.py)::(\w+(?:::\w+)?)(?:\[[^\]]*\])?`")
# Who still owes a case without a test; any other case without one is a gap.
OWNERS = (
    "not yet: operations",
    "not yet: OAuth front",
    "not yet: final pages",
    "not yet: safety",
    "not yet: production",
)
# The cases that may still wait. A case with a test must not become owed again.
OWED = re.compile(
    r"OA-\d+|AP-(23|26|39)|AU-26|EN-(13|17)|OP-(1|4|11|12)|RF-(27|28)|SA-(8|9|10)",
    re.ASCII,
)
# Their ids come from the shared files, one parametrised row each, so they are not in the source.
FROM_FILES = "tests/vectors/test_vectors.py"


def rows() -> dict[str, str]:
    """Case id → the table's text."""
    found = ROW.findall(TABLE.read_text())
    assert len(found) == len(dict(found)), "a case stands in the table twice"
    return dict(found)


@cache
def names(path: str) -> frozenset[str]:
    """Every test of a module, by its name, or `Class::name`."""
    tree = ast.parse((ROOT / path).read_text())
    found = {
        node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    for node in tree.body:
        if isinstance(node, ast.ClassDef):
            inner = (
                each
                for each in node.body
                if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)
            )
            found |= {f"{node.name}::{each.name}" for each in inner}
    return frozenset(name for name in found if name.rpartition("::")[2].startswith("test_"))


def test_each_case_has_tests_that_exist_or_an_owner() -> None:
    for case, text in rows().items():
        references = REFERENCE.findall(text)
        assert text.count("::") == len(references), f"{case}: a reference is not `path::name`"
        assert references or text.startswith(OWNERS), case
        for path, name in references:
            assert (ROOT / path).is_file(), path
            assert name in names(path), f"{path} has no {name}"
            carried = (
                case.replace("-", "_") in name
                or case in (ROOT / path).read_text()
                or path == FROM_FILES
            )
            assert carried, f"{path}::{name} does not carry {case}"


@pytest.mark.parametrize("page", ["docs/threat-model.md", "tests/FAILURES.md"])
def test_each_promise_of_a_page_names_tests_that_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    references = REFERENCE.findall(text)
    assert references
    assert text.count("::") == len(references), "a reference is not written `path::name`"
    missing = [
        f"{path}::{name}"
        for path, name in references
        if not (ROOT / path).is_file() or name not in names(path)
    ]
    assert not missing


def test_no_case_is_owed_but_those_that_may_wait() -> None:
    owed = {case for case, text in rows().items() if not REFERENCE.search(text)}
    assert {case for case in owed if not OWED.fullmatch(case)} == set()


@pytest.mark.vectors
def test_the_table_holds_every_case() -> None:
    assert SECURITY
    lists = [path.read_text() for path in sorted(SECURITY.glob("cases*.md"))]
    wanted = [
        case for text in lists for case in re.findall(rf"^\| ({CASE}) \|", text, re.MULTILINE)
    ]
    assert len(wanted) == len(set(wanted)), "a case stands in two lists"
    assert len(lists) >= 2
    assert set(rows()) == set(wanted)
