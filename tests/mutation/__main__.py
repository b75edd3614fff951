"""Finds changes to a check that no test notices: `python -m tests.mutation agentauth/protocol`.

Run it by hand. It makes one change at a time, in forks of one process (forks.py). A change that
cannot be made there is made in a copy of the tree, for a new process that runs the module's own
tests. Prints each survivor as a row of SURVIVORS.md and a score per module. `--seed` draws `--most`
changes from all.
"""

import argparse
import json
import pickle
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.mutation.changes import Change, changes

ROOT = Path(__file__).resolve().parents[2]
MARKED = "not slow and not postgres and not redis and not flow and not softhsm and not history"
# Seconds beyond three times an unchanged run: a change may make a loop endless.
SPARE_SECONDS = 60


def copied(into: Path) -> Path:
    """The files of the work tree that git tracks."""
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


def modules_in(tree: Path, given: Path) -> Iterator[str]:
    """The given module, or the package's modules without tests and migrations."""
    for each in [given] if given.suffix else sorted((tree / given).rglob("*.py")):
        name = each.relative_to(tree) if each.is_absolute() else each
        if not {"tests", "migrations"} & set(name.parts):
            yield str(name)


def tests_beside(tree: Path, module: str) -> str:
    """The nearest `tests` folder above it."""
    folder = next(each / "tests" for each in (tree / module).parents if (each / "tests").is_dir())
    return str(folder.relative_to(tree))


def pytest(*arguments: str, tree: Path, seconds: float | None = None) -> bool:
    """Whether all tests pass in time."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        MARKED,
        *arguments,
    ]
    try:
        done = subprocess.run(
            command, cwd=tree, stdout=subprocess.DEVNULL, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def try_in_forks(
    tree: Path, chosen: Sequence[tuple[str, Change]], tests: Sequence[str]
) -> list[dict[str, Any]]:
    """The results of forks.py, one per change."""
    file = tree / "chosen.changes"
    file.write_bytes(pickle.dumps(chosen))
    if not pytest("-s", "-p", "tests.mutation.forks", "--changes", str(file), *tests, tree=tree):
        raise RuntimeError("the changes could not be tried: run the tests without any")
    return [json.loads(line) for line in file.with_suffix(".told").read_text().splitlines()]


def passes_alone(
    tree: Path, module: str, change: Change, files: Sequence[str], limits: dict[str, float]
) -> bool:
    """Whether the module's own tests, else the `files` given, pass in a new process."""
    path = tree / module
    own = (tree / tests_beside(tree, module)).glob(f"test_{path.stem}*.py")
    tests = sorted(map(str, own)) or list(files)
    if module not in limits:
        began = time.monotonic()
        if not pytest(*tests, tree=tree):
            raise RuntimeError(f"{' '.join(tests)} fail without a change")
        limits[module] = 3 * (time.monotonic() - began) + SPARE_SECONDS
    source = path.read_text()
    path.write_text(change.source)
    passed = pytest("-x", *tests, tree=tree, seconds=limits[module])
    path.write_text(source)
    return passed


def drawn(tree: Path, given: argparse.Namespace) -> tuple[list[tuple[str, Change]], int]:
    """The changes to try, each with its module, in order; and how many there are."""
    modules = [name for each in given.module for name in modules_in(tree, each)]
    modules = [each for each in modules if not each.startswith(tuple(given.without))]
    every = [(name, change) for name in modules for change in changes((tree / name).read_text())]
    chosen = random.Random(given.seed).sample(every, min(given.most or len(every), len(every)))
    return sorted(chosen, key=lambda each: (each[0], each[1].line, each[1].what)), len(every)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path, nargs="+", help="modules or packages")
    parser.add_argument(
        "--without", nargs="*", default=[], help="modules and packages to leave out"
    )
    parser.add_argument("--tests", nargs="*", help="instead of those beside the modules")
    parser.add_argument("--most", type=int)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentauth-mutation-") as folder:
        tree = copied(Path(folder))
        chosen, total = drawn(tree, given)
        tests = given.tests or sorted({tests_beside(tree, name) for name, _ in chosen})
        limits: dict[str, float] = {}
        noticed, tried = Counter[str](), Counter(name for name, _ in chosen)
        for (name, change), told in zip(chosen, try_in_forks(tree, chosen, tests), strict=True):
            if told["noticed"] is None:
                told["noticed"] = not passes_alone(tree, name, change, told["files"], limits)
            if told["noticed"]:
                noticed[name] += 1
            else:
                print(f"| {name}:{change.line} | {change.what} | |", flush=True)
        for name in tried:
            print(f"{name}: {noticed[name]} of {tried[name]} noticed")
        print(f"all: {noticed.total()} of {len(chosen)} noticed, of {total}")


if __name__ == "__main__":
    main()
