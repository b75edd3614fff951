"""Runs the groups of tests: `python -m tests.run unit|rest|flows|campaign|screenshots`. Names what a machine lacks."""

import os
import shutil
import subprocess
import sys

from tests import postgres

APPS = ["agentauth", "audit", "kms", "registry", "verifier", "approvals"]
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"


def missing() -> dict[str, str]:
    """Marker → program that is not here."""
    absent = {}
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        absent["browser"] = "Chromium"
    if not (os.environ.get("DATABASE_URL") or postgres.binaries()):
        absent["postgres"] = "PostgreSQL"
    if not (shutil.which("node") and shutil.which("npm")):
        absent["node"] = "Node.js and npm"
    return absent


def pytest(*arguments: str, database_url: str = "") -> bool:
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if database_url:
        env["DATABASE_URL"] = database_url
    command = [sys.executable, "-m", "pytest", "-q", *arguments]
    print("+ pytest", *arguments, "(PostgreSQL)" if database_url else "", flush=True)
    return subprocess.run(command, env=env, check=False).returncode == 0


def unit() -> bool:
    return pytest(
        *APPS,
        "tests/test_layout.py",
        "tests/test_source.py",
        "tests/test_cases.py",
        "tests/test_triggers.py",
        "tests/contract",
        "tests/vectors",
        "tests/campaign",
        "-n",
        "2",
        "-m",
        "not slow and not postgres",
    )


def rest(absent: dict[str, str]) -> bool:
    """What `check` did not run: the same unit tests on PostgreSQL, then the stories across apps."""
    if "postgres" in absent:
        return stories(absent)
    with postgres.cluster() as url:
        passed = pytest(
            *APPS,
            "tests/contract",
            "tests/test_triggers.py",
            "-n",
            "2",
            "-m",
            "not slow and not flow",
            database_url=url,
        )
        os.environ["TEST_POSTGRES_URL"] = url
        return stories(absent) and passed


def stories(absent: dict[str, str]) -> bool:
    """Flows, faults and interop; then the browser in a process of its own: its driver keeps an event loop running."""
    without = "".join(f" and not {marker}" for marker in {"browser", *absent})
    passed = pytest("tests", *APPS, "-m", "(flow or faults or node or slow or postgres)" + without)
    return ("browser" in absent or pytest("tests/browser", "-m", "browser")) and passed


def main() -> int:
    group = sys.argv[1]
    absent = missing()
    if absent and REQUIRE_ALL:
        print("REQUIRE_ALL=1, but not installed:", ", ".join(absent.values()))
        return 1
    if group == "unit":
        passed = unit()
    elif group == "flows":
        passed = pytest("tests", *APPS, "-m", "flow and not browser and not faults and not node")
    elif group in {"rest", "campaign"}:
        # CAMPAIGN=1 makes the same tests run their full counts; see tests/conftest.py.
        passed = rest(absent)
    else:
        passed = pytest("tests/browser", "-m", "browser", "-k", "screenshots", "--screenshots")
    for marker, program in absent.items():
        print(f"NOT RUN: tests marked '{marker}', because {program} is not installed")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
