"""Environments of their own for programs that pin other versions of libraries that we use.

Each is made from a lock file inside our own environment, by the first process that needs it.
"""

import fcntl
import hashlib
import subprocess
import sys
import venv
from pathlib import Path


def environment(name: str, lock: Path) -> Path:
    """The folder of the environment, installed once per content of its lock file.

    Other processes wait meanwhile.
    """
    folder = Path(sys.prefix) / name / hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    folder.parent.mkdir(exist_ok=True)
    with (folder.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
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
