"""The service's environment, exactly the packages locked in requirements-production.txt.

`python3 -m tests.production.environment` creates it.
"""

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
LOCK = ROOT / "requirements-production.txt"
# The Dockerfile's.
UID = 10001
# The users of docs/install.md, each with its group. They need no account here.
USERS = {
    "agentauth": (UID, UID),
    "agentauth-verifier": (10002, 10002),
    "agentauth-owner": (10003, UID),
    "openbao": (10004, 10004),
}


def service_user(name: str = "agentauth") -> dict[str, object]:
    """Arguments of `subprocess` that run a process as this user of the page.

    Empty unless the tests run as root: the services run as their user then.
    """
    user, group = USERS[name]
    return {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}


def python() -> str | None:
    """A Python the service's user may run, so not in root's home; the system's first, as
    documented.
    """
    for found in ("/usr/bin/python3", Path(sys.executable).resolve()):
        asked = [str(found), "-c", "import ensurepip, sys; sys.exit(sys.version_info < (3, 11))"]
        with contextlib.suppress(OSError):
            done = subprocess.run(
                asked, check=False, capture_output=True, cwd="/", **service_user()
            )  # type: ignore[call-overload]
            if done.returncode == 0:
                return str(found)
    return None


def environment() -> Path:
    """Its folder, created once per content of the lock file; other processes wait meanwhile.

    Raises RuntimeError without a Python.
    """
    chosen = python()
    if chosen is None:
        raise RuntimeError("no Python that the service's user can run")
    digest = hashlib.sha256(LOCK.read_bytes() + chosen.encode()).hexdigest()[:16]
    folder = _home() / digest
    folder.parent.mkdir(exist_ok=True, mode=0o755)
    with (folder.parent / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        if not (folder / "complete").exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([chosen, "-m", "venv", folder], check=True)
            install = [
                "install",
                "-q",
                "--disable-pip-version-check",
                "--require-hashes",
                "-r",
                str(LOCK),
            ]
            subprocess.run([str(folder / "bin/pip"), *install], check=True)
            (folder / "complete").touch()
    return folder


def _home() -> Path:
    """In the checkout, unless the service's user has no access to it."""
    here = ROOT / ".venv-production"
    listed = subprocess.run(  # type: ignore[call-overload]
        ["/bin/ls", str(ROOT)], check=False, capture_output=True, cwd="/", **service_user()
    )
    if listed.returncode == 0:
        return here
    return Path("/opt/agentauth-environments")


if __name__ == "__main__":
    print(environment())
