"""Tries changes in forks of one pytest: `pytest -p tests.mutation.forks --changes FILE TESTS`.

For each change a fork runs the tests that execute its statement, until one fails.
"""

import contextlib
import json
import os
import pickle
import signal
import sys
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import coverage
import pytest
from _pytest.nodes import Node

from tests.mutation.changes import Change
from tests.mutation.live import Functions, functions_of, put_in

# Seconds of tests per change: enough for all tests of most statements. Those of a statement that
# nearly every test executes would take minutes. With 20, every second survivor was a false one.
MOST_SECONDS = 60
# Seconds beyond three times an unchanged run: a change may make a loop endless. On a busy machine
# 10 were too few: a slow test counted as one that notices.
SPARE_SECONDS = 30
PASSED, NOTICED, NOT_PUT_IN = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Test:
    """A test that passes without a change, its seconds, and the lines it executes per module."""

    item: pytest.Item
    seconds: float
    lines: dict[str, set[int]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--changes", type=Path, help="pairs of a module and a change, pickled")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool:
    """Write a line of JSON for each change into FILE with the suffix `.told`.

    `noticed` is null for a change that cannot be put into a running process.
    """
    file: Path = session.config.getoption("changes")
    given: list[tuple[str, Change]] = pickle.loads(file.read_bytes())  # noqa: S301  # our own file
    modules = sorted({module for module, _ in given})
    for item in _first_of_each_file(session.items):
        _run(item, session)
    session.testsfailed = 0
    tests = _trace(session, modules, file.with_suffix(".traced"))
    live = functions_of(modules)
    files = {module: _files(tests, module) for module in modules}
    with file.with_suffix(".told").open("w") as told:
        for module, change in given:
            began = time.monotonic()
            chosen = _choose(tests, module, change)
            line = {
                "module": module,
                "change": f"{change.line} {change.what}",
                "noticed": _try(session, chosen, module, change, live),
                "tests": len(chosen),
                "seconds": round(time.monotonic() - began, 1),
                "files": files[module],
            }
            print(json.dumps(line), file=told, flush=True)
    return True


def _first_of_each_file(items: list[pytest.Item]) -> Iterator[pytest.Item]:
    """Tests that create the database and import late, for all forks; none that empties tables."""
    seen = set()
    for item in items:
        marked = item.get_closest_marker("django_db")
        emptying = "transactional_db" in getattr(item, "fixturenames", ()) or (
            marked and marked.kwargs
        )
        if item.path not in seen and not emptying:
            seen.add(item.path)
            yield item


def _run(item: pytest.Item, following: Node) -> None:
    item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)


def _fork(act: Callable[[], int]) -> int:
    """Return what `act` returns in a fork, NOTICED if it raises, or the signal that ends it,
    negative.
    """
    pid = os.fork()
    if pid:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(ProcessLookupError):
            # The servers that its tests started.
            os.killpg(pid, signal.SIGKILL)
        return code
    told = NOTICED
    try:
        os.setpgid(0, 0)
        told = act()
    except Exception:  # noqa: BLE001  # the fork ends here
        traceback.print_exc()
    finally:
        os._exit(told)


def _trace(session: pytest.Session, modules: list[str], file: Path) -> list[Test]:
    """Run all tests in a fork, so that this process keeps no cache they fill."""
    paths = {str(Path(each).resolve()): each for each in modules}

    def act() -> int:
        tracer = coverage.Coverage(data_file=None, config_file=False, include=list(paths))
        tracer.start()
        seconds = {}
        for item, following in zip(session.items, [*session.items[1:], session], strict=True):
            tracer.switch_context(item.nodeid)
            failed, began = session.testsfailed, time.monotonic()
            _run(item, following)
            if session.testsfailed == failed:
                seconds[item.nodeid] = time.monotonic() - began
        tracer.stop()
        lines: dict[str, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for path, module in paths.items():
            for line, names in tracer.get_data().contexts_by_lineno(path).items():
                for name in names:
                    lines[name][module].append(line)
        file.write_text(json.dumps([seconds, lines]))
        return PASSED

    if _fork(act) != PASSED:
        raise RuntimeError("the tests could not be run without a change")
    seconds, lines = json.loads(file.read_text())
    for item in session.items:
        if item.nodeid not in seconds:
            print("left out, since it fails without a change:", item.nodeid, file=sys.stderr)
    return [
        Test(
            item,
            seconds[item.nodeid],
            {module: set(numbers) for module, numbers in lines.get(item.nodeid, {}).items()},
        )
        for item in session.items
        if item.nodeid in seconds
    ]


def _files(tests: list[Test], module: str) -> list[str]:
    """The three test files with the most tests that execute the module."""
    found = Counter(str(each.item.path) for each in tests if module in each.lines)
    return [name for name, _ in found.most_common(3)]


def _choose(tests: list[Test], module: str, change: Change) -> list[Test]:
    """The tests that execute the statement: the likeliest to notice first, then the fastest.

    Tests that reach its body come first, as a refusal does in the body of its `if`, and then those
    in a file named after the module. For a statement that runs at import they are all tests that
    execute the module.
    """
    lines, body, named = set(change.lines), set(change.body), f"test_{Path(module).stem}"
    found = [
        (
            not each.lines[module] & body,
            not each.item.path.name.startswith(named),
            each.seconds,
            each,
        )
        for each in tests
        if module in each.lines and (change.at_import or each.lines[module] & lines)
    ]
    kept, total = list[Test](), 0.0
    for *_, seconds, each in sorted(found, key=lambda one: one[:3]):
        total += seconds
        if kept and total > MOST_SECONDS:
            break
        kept.append(each)
    return kept


def _try(
    session: pytest.Session, chosen: list[Test], module: str, change: Change, live: Functions
) -> bool | None:
    """Whether a test fails, or hangs, with the change; None if the change cannot be put in."""

    def act() -> int:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        if not put_in(module, change, live):
            return NOT_PUT_IN
        for each in chosen:
            signal.alarm(int(3 * each.seconds) + SPARE_SECONDS)
            _run(each.item, session)
            if session.testsfailed:
                return NOTICED
        return PASSED

    told = _fork(act)
    return None if told == NOT_PUT_IN else told != PASSED
