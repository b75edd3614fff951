"""A change is put into a loaded module wherever its functions and values are held."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.mutation.changes import changes
from tests.mutation.live import functions_of, put_in

MODULE = """
from functools import lru_cache

MOST = 3
LEAST, NEXT = 1, 2
BOUND = 4

@lru_cache
def check(value):
    return any(each > 10 for each in [value])

def bounded(value, most=BOUND):
    return value <= most

def outer(call):
    def inner(value):
        return call(value) or value == 20
    return inner

class Box:
    size = 7

    @property
    def full(self):
        return self.size < 30

decorated = outer(lambda value: False)
"""
USER = "from changed_here import LEAST, MOST, NEXT, check, decorated, Box"


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module that uses the changed one, which is loaded too."""
    (tmp_path / "changed_here.py").write_text(MODULE)
    (tmp_path / "its_user.py").write_text(USER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("its_user")
    del sys.modules["changed_here"], sys.modules["its_user"]


def change(what: str) -> bool:
    """Whether the change with this description could be put in."""
    [found] = [each for each in changes(MODULE) if each.what == what]
    return put_in("changed_here.py", found, functions_of(["changed_here.py"]))


def test_function_changes_where_it_is_imported_and_decorated(loaded: ModuleType) -> None:
    assert not loaded.check(10)
    loaded.check.cache_clear()
    assert change("`each > 10` → `each >= 10`")
    assert loaded.check(10)


def test_function_made_before_by_the_changed_one_changes_too(loaded: ModuleType) -> None:
    assert change("`value == 20` → `value != 20`")
    assert not loaded.decorated(20)


def test_property_changes_in_objects_already_made(loaded: ModuleType) -> None:
    box = loaded.Box()
    box.size = 30
    assert not box.full
    assert change("`self.size < 30` → `self.size <= 30`")
    assert box.full


def test_value_changes_in_the_module_that_imported_it(loaded: ModuleType) -> None:
    assert change("`3` → `4`")
    assert loaded.MOST == 4


def test_change_in_the_body_of_a_class_is_not_put_in(loaded: ModuleType) -> None:
    assert not change("`7` → `8`")


def test_values_assigned_together_change_too(loaded: ModuleType) -> None:
    assert change("`1` → `2`")
    assert (loaded.LEAST, loaded.NEXT) == (2, 2)


def test_value_of_which_a_default_was_made_is_not_put_in(loaded: ModuleType) -> None:
    assert not change("`4` → `5`")
