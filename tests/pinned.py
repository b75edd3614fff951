"""Environments of their own for programs that pin other versions of libraries that we use.

Each is made from a lock file inside our own environment, by the first process that needs it.
"""

import fcntl
import hashlib
import os
import subprocess
import sys
from pathlib import Path

# Of an environment with the packages that are locked for another version of Python; "" for none.
OTHER_PYTHON = os.environ.get("OTHER_PYTHON", "")


def environment(name: str, lock: Path, python: str = sys.executable) -> Path:
    """The folder of the environment, installed once per content of its lock file.

    `python` is the interpreter that it is made with. Other processes wait meanwhile.
    """
    content = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    other = "" if python == sys.executable else "-other"
    folder = Path(sys.prefix) / name / f"{content}{other}"
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            subprocess.run([python, "-m", "venv", "--clear", folder], check=True)
            install = [
                "-m",
                "pip",
                "install",
                "-q",
                "--disable-pip-version-check",
                "--require-hashes",
                "-r",
                str(lock),
            ]
            subprocess.run([folder / "bin/python", *install], check=True)
            (folder / "complete").touch()
    return folder
