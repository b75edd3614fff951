"""Starts a program as in production: as an ordinary user, with the packages of its lock file only.

`python -m tests.unprivileged MODULE …` runs a module that cannot import any package missing from
requirements-production.txt.
"""

import importlib.abc
import importlib.metadata
import os
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parent.parent
PRODUCTION: Final = ROOT / "requirements-production.txt"
# What `make run` installs.
BASE: Final = ROOT / "requirements.txt"
# The image's user (Dockerfile).
USER_ID: Final = 10001


def as_user() -> list[str]:
    """A command prefix that drops root's rights; empty if this process is not root.

    It may read everything, since the tests' Python may be in root's home, and write what is its
    own.
    """
    if os.geteuid() != 0:
        return []
    only = "-all,+dac_read_search"
    caps = [f"--inh-caps={only}", f"--ambient-caps={only}", f"--bounding-set={only}"]
    return ["setpriv", f"--reuid={USER_ID}", f"--regid={USER_ID}", "--clear-groups", *caps]


def give_to_user(folder: Path) -> None:
    """Let such a process write into the folder, as into VAR_DIR."""
    if os.geteuid() == 0:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER_ID, USER_ID)


class OnlyLocked(importlib.abc.MetaPathFinder):
    """Refuses to import top-level modules of distributions that the lock file does not name."""

    def __init__(self, lock: Path) -> None:
        locked = set(versions(lock))
        self._refused = {
            module
            for module, names in importlib.metadata.packages_distributions().items()
            if not locked & set(map(_plain, names))
        }

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: Any = None) -> None:
        if fullname.partition(".")[0] in self._refused:
            raise ModuleNotFoundError(
                f"No module named {fullname!r} in this environment", name=fullname
            )


def versions(lock: Path) -> dict[str, set[str]]:
    """Each package of a lock file, and its versions: several if they depend on the Python."""
    found: dict[str, set[str]] = {}
    pattern = re.compile(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==(\S+)", re.MULTILINE)
    for name, version in pattern.findall(lock.read_text()):
        found.setdefault(_plain(name), set()).add(version)
    return found


def _plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    sys.meta_path.insert(0, OnlyLocked(PRODUCTION))
    del sys.argv[0]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
