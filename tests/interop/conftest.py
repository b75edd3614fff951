import fcntl
import hashlib
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="session")
def npm_packages() -> None:
    _install_npm_packages(HERE)


@pytest.fixture(scope="session")
def npm_packages_of_mcp() -> None:
    _install_npm_packages(HERE / "mcp")


def _install_npm_packages(folder: Path) -> None:
    """Install exactly what the lock file pins, by hash; once, since others use it meanwhile."""
    lock = folder / "package-lock.json"
    complete = folder / "node_modules" / hashlib.sha256(lock.read_bytes()).hexdigest()
    with lock.open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not complete.exists():
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            complete.touch()
