"""Which changes of a check does no test notice? `python -m tests.mutation agentauth/protocol/dpop.py`, by hand.

One change at a time in a copy of the tree: first the module's own tests, then `--wider` ones for what they let pass. Prints
each survivor as a row of SURVIVORS.md, and a score for each module. `--most` changes are drawn by `--seed`.
"""

import argparse
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.mutation.changes import Change, changes

ROOT = Path(__file__).resolve().parents[2]
WIDER = ("agentauth/protocol/tests", "tests/vectors")
# What a clean run takes, and so much more: a change may loop.
SPARE_SECONDS = 60


def copied(into: Path) -> Path:
    """The files of the work tree that git knows."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in names.splitlines():
        if (ROOT / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, into / name)
    return into


def own_tests(module: Path) -> list[str]:
    """`tests/test_<module>*.py` beside it."""
    found = sorted((ROOT / module.parent / "tests").glob(f"test_{module.stem}*.py"))
    return [str(each.relative_to(ROOT)) for each in found]


def passes(tree: Path, tests: Sequence[str], seconds: float) -> bool:
    """Whether all tests pass in time."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    try:
        return (
            subprocess.run(command, cwd=tree, capture_output=True, timeout=seconds, check=False).returncode
            == 0
        )
    except subprocess.TimeoutExpired:
        return False


def survivors(
    tree: Path, module: Path, chosen: Iterable[Change], stages: Sequence[Sequence[str]]
) -> list[Change]:
    """Those of the changes that the tests of no stage notice. Raises RuntimeError where tests fail without any."""
    source, left = (tree / module).read_text(), list(chosen)
    for tests in stages:
        if not (left and tests):
            continue
        began = time.monotonic()
        if not passes(tree, tests, 1800):
            raise RuntimeError(f"{' '.join(tests)} fail without a change")
        limit = 3 * (time.monotonic() - began) + SPARE_SECONDS
        kept = []
        for change in left:
            (tree / module).write_text(change.source)
            if passes(tree, tests, limit):
                kept.append(change)
        (tree / module).write_text(source)
        left = kept
    return left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("module", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=60, help="changes of each module")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lines", help="only within these, as 10-20")
    parser.add_argument(
        "--wider", nargs="*", default=WIDER, help="tests for what a module's own ones let pass"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="agentauth-mutation-") as folder:
        tree = copied(Path(folder))
        for module in given.module:
            every = changes((tree / module).read_text())
            if given.lines:
                first, last = map(int, given.lines.split("-"))
                every = [each for each in every if first <= each.line <= last]
            chosen = random.Random(given.seed).sample(every, min(given.most, len(every)))
            left = survivors(tree, module, chosen, [own_tests(module), given.wider])
            for change in sorted(left, key=lambda each: each.line):
                print(f"| {module}:{change.line} | {change.what} | |", flush=True)
            print(
                f"{module}: {len(chosen) - len(left)} of {len(chosen)} noticed, of {len(every)}", flush=True
            )


if __name__ == "__main__":
    main()
