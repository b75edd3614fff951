"""Every change that is tried removes or inverts a check."""

import ast

from tests.mutation.changes import changes

MODULE = '''
"""A 1 in words is no number."""

def check(value, *, most=10):
    if value is None or not value.strip():
        raise ValueError
    _measure(value)
    return len(value) <= most
'''


def test_each_kind_of_check_is_taken_away_once() -> None:
    assert sorted(each.what for each in changes(MODULE)) == [
        "`10` → `11`",
        "`_measure(value)` → `None`",
        "`if value is None or not value.strip(): …` → `if False: …`",
        "`len(value) <= most` → `len(value) < most`",
        "`not value.strip()` → `not not value.strip()`",
        "`value is None or not value.strip()` → `value is None and (not value.strip())`",
        "`value is None` → `value is not None`",
    ]


def test_a_change_is_a_whole_module_and_changes_one_place() -> None:
    source = ast.unparse(ast.parse(MODULE))
    for each in changes(MODULE):
        before, after = source.splitlines(), each.source.splitlines()
        assert len(before) == len(after)
        assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_a_change_knows_its_statement_and_whether_that_runs_at_import() -> None:
    found = {
        each.what: (list(each.lines), list(each.body), each.at_import) for each in changes(MODULE)
    }
    assert found["`10` → `11`"] == ([4], [5, 6, 7, 8], True)
    assert found["`value is None` → `value is not None`"] == ([5], [6], False)
    assert found["`_measure(value)` → `None`"] == ([7], [], False)
