"""Runs groups of tests, and names what this machine lacks: `python -m tests.run GROUP`.

GROUP is unit, unit-before-rest, coverage, rest, production, again, long, campaign or screenshots.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests import faketime, nginx, pgbouncer, postgres, previous_release, redis_servers, softhsm
from tests.faults import namespaces
from tests.production import environment
from tests.vectors.shared import ABSENT, SECURITY

APPS = ["agentauth", "audit", "kms", "registry", "verifier", "approvals"]
# Folders that run with the apps' unit tests. Files in other folders of tests/ carry the mark of
# their stage.
UNIT_FOLDERS = ["tests/contract", "tests/vectors", "tests/campaign", "tests/mutation"]
# Minimum branch coverage in percent of each package, by unit tests alone.
COVERED = ["agentauth/protocol", "registry", "verifier", "approvals", "kms", "audit"]
FLOOR = 95
# The slowest of the files that run side by side: each starts before the short ones.
LONGEST = {
    f"tests/{name}.py"
    for name in (
        "browser/test_every_page", "faults/test_kills", "faults/test_two_versions",
        "faults/test_table", "acts/test_acts",
        "flows/test_hostile_texts", "flows/test_scanner", "flows/test_set_to_approved",
        "flows/test_tutorials", "flows/test_agent_life", "flows/test_agent_client",
        "flows/test_shared_settings", "interop/test_mcp_client",
    )
}  # fmt: skip
# One more than the cores, since some tests wait, but no more: each process collects all tests and
# creates its tables. A slow test blocks those queued behind it, which other processes then take.
CORES = min(os.cpu_count() or 1, 7)
BY_TEST = ("-n", str(CORES + 1), "--dist", "worksteal")
# Whole files in the given order: each has its own servers, and the longest should not come last.
BY_FILE = ("--dist", "loadfile", "--no-loadscope-reorder")
# Groups that run what CI leaves out.
BEYOND_CI = ("long", "campaign")
REQUIRE_ALL = os.environ.get("REQUIRE_ALL") == "1"
# Bytes that all files of a run together may take, with some to spare.
ROOM = 8 * 2**30
# The file to which every pytest of a run adds a line per failed test (conftest.py). They are shown
# together at the end, since a log often keeps its last lines only.
FAILURES = "FAILED_TESTS"


def memory() -> str | None:
    """A file system in memory with room for the tests' files, if there is one.

    On a disk, syncing thousands of small files takes a tenth of the run.
    """
    folder = Path("/dev/shm")  # noqa: S108 — a folder of our own is made in it
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return None
    return str(folder) if shutil.disk_usage(folder).free > ROOM else None


def missing(group: str) -> dict[str, str]:
    """Marker → the program this machine lacks for this group of tests."""
    absent = {}
    if not (shutil.which("chromium") or shutil.which("chromium-browser")):
        absent["browser"] = "Chromium"
    if not (os.environ.get("DATABASE_URL") or postgres.binaries()):
        absent["postgres"] = "PostgreSQL"
    if not (shutil.which("node") and shutil.which("npm")):
        absent["node"] = "Node.js and npm"
    if not all(map(shutil.which, redis_servers.PROGRAMS)):
        absent["redis"] = "Redis and Valkey"
    if not nginx.program():
        absent["nginx"] = "nginx"
    if lacking := [absent[each] for each in ("postgres", "redis", "nginx") if each in absent]:
        absent["production"] = " and ".join(lacking)
    elif not environment.python():
        absent["production"] = "a Python that the user of the service may run"
    if group in BEYOND_CI and not namespaces.available():
        absent["netns"] = "the right to make network namespaces"
    if not faketime.LIBRARY:
        absent["faketime"] = "libfaketime"
    programs = {
        "prometheus": ("prometheus", "Prometheus"),
        "compose": ("docker-compose",) * 2,
        "kubernetes": ("kubectl",) * 2,
    }
    absent |= {each: name for each, (file, name) in programs.items() if not shutil.which(file)}
    if not pgbouncer.program():
        absent["pgbouncer"] = "PgBouncer"
    if not softhsm.installed():
        absent["softhsm"] = "SoftHSM"
    if not previous_release.is_here():
        # A shallow clone, or no clone at all.
        absent["history"] = (
            f"the commit that tests/PREVIOUS_RELEASE names ({previous_release.COMMIT[:12]})"
        )
    return absent


def pytest(
    *arguments: str,
    database_url: str = "",
    installed_at: Path | None = None,
    together: bool = False,
    shared: bool = True,
    report: bool = False,
) -> bool:
    """Whether all passed.

    `installed_at`: the system of production tests. `together`: print at the end. Not `shared`:
    hide the shared files. `report`: write what passed to tests/campaign/RESULTS.md.
    """
    began = time.monotonic()
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "REDIS_URL"}
    }
    if database_url:
        env["DATABASE_URL"] = database_url
    if installed_at:
        env["PRODUCTION"] = str(installed_at)
    if not shared:
        env["AGENTAUTH_SHARED"] = ""
    slowest = ("--durations=8", "--durations-min=10")
    command = [sys.executable, "-m", "pytest", "-q", *slowest, *arguments]
    if report:
        command += ["-p", "tests.campaign.results"]
    print("+ pytest", *arguments, "(PostgreSQL)" if database_url else "", flush=True)
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT} if together else {}
    done = subprocess.run(command, env=env, check=False, text=True, **how)  # type: ignore[call-overload]
    if together:
        print("- pytest", *arguments, "\n" + done.stdout, flush=True)
    print(f"= {time.monotonic() - began:.0f} s", flush=True)
    if done.returncode and (file := os.environ.get(FAILURES)):
        with Path(file).open("a") as lines:
            lines.write(f"exit code {done.returncode}: pytest {' '.join(arguments)[:60]}\n")
    return bool(done.returncode == 0)


def marked(*markers: str) -> list[str]:
    """The files naming one of these markers, longest first: pytest need not read all others."""
    named = re.compile(rf"\bmark\.({'|'.join(markers)})\b")
    files = (each for folder in [*APPS, "tests"] for each in Path(folder).rglob("test_*.py"))
    found = sorted(str(each) for each in files if named.search(each.read_text()))
    return sorted(found, key=lambda each: each not in LONGEST)


def paced() -> list[str]:
    """Files outside tests/faults and tests/campaign with longer or stricter campaign tests."""
    named = re.compile(
        r"^from (?:tests\.time_limits|tests\.conftest|verifier\.tests\.calls) import .*$",
        re.MULTILINE,
    )
    folders = (*APPS, "tests/flows", "tests/browser")
    files = (each for folder in folders for each in Path(folder).rglob("test_*.py"))
    words = ("within", "CAMPAIGN", "fails")
    found = {
        str(each)
        for each in files
        if any(word in line for line in named.findall(each.read_text()) for word in words)
    }
    elsewhere = ("tests/faults/", "tests/campaign/")
    return sorted(found | {each for each in marked("long") if not each.startswith(elsewhere)})


def unit(absent: dict[str, str], *arguments: str, of: str = "embedded") -> bool:
    """The unit tests on SQLite; with PostgreSQL, without those that `on_postgresql` runs.

    `of`: which database tests run here too, as --database-tests of conftest.py names them. Only
    where no other run has them all, all rows of long tables run here.
    """
    of = "all" if "postgres" in absent else of
    without = "".join(
        f" and not {each}"
        for each in ("softhsm", "history", "prometheus", "kubernetes")
        if each in absent
    )
    return pytest(
        *arguments,
        "--database-tests",
        of,
        *([] if of == "all" else ["--one-in-five"]),
        *APPS,
        *map(str, Path("tests").glob("test_*.py")),
        *UNIT_FOLDERS,
        *BY_TEST,
        "-m",
        "not slow and not postgres and not redis and not flow and not long" + without,
    )


def coverage(absent: dict[str, str]) -> bool:
    """The unit tests with branch coverage: a line per package, and whether all reach the floor."""
    passed = unit(absent, "--cov", "--cov-report=")
    more = ("--cov", "--cov-append", "--cov-report=")
    if "postgres" not in absent:
        with postgres.cluster() as url:
            passed = on_postgresql(absent, url, *more) and passed
    elif "redis" not in absent:
        passed = with_redis(*more) and passed
    if "redis" not in absent:
        again = ("--endpoint", "lean", "--replay-cache", "redis", "-n", "2")
        passed = (
            pytest("verifier/tests", *again, "-m", "not slow and not postgres and not redis", *more)
            and passed
        )
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        subprocess.run([sys.executable, "-m", "coverage", "json", "-q", "-o", report], check=True)
        files = json.loads(report.read_text())["files"]
    for package in COVERED:
        of = [entry["summary"] for path, entry in files.items() if path.startswith(package + "/")]
        branches, lines = (
            100 * sum(each[covered] for each in of) / sum(each[whole] for each in of)
            for covered, whole in (
                ("covered_branches", "num_branches"),
                ("covered_lines", "num_statements"),
            )
        )
        passed = passed and branches >= FLOOR
        print(f"{package:20}branches {branches:5.1f} %   lines {lines:5.1f} %")
    return passed


def on_postgresql(absent: dict[str, str], url: str, *arguments: str) -> bool:
    """The unit tests that use a database, and those with servers of their own.

    `rest` passes --one-in-five; `long` runs all of them, those marked `long` too.
    """
    which = " and not long" if "--one-in-five" in arguments else ""
    unable = [each for each in ("redis", "softhsm", "history") if each in absent]
    without = "".join(f" and not {each}" for each in unable)
    return pytest(
        *arguments,
        *APPS,
        "tests/test_triggers.py",
        "tests/test_upgraded_schema.py",
        "--ignore=agentauth/protocol",
        "--ignore=agentauth/sdk",
        # Refused before any database query.
        "--ignore=agentauth/tests/test_public_urls.py",
        "--database-tests",
        "only",
        # They use two thirds of a core each: they wait for PostgreSQL, Redis and time limits.
        "-n",
        str(CORES + 2),
        "--dist",
        "worksteal",
        "-m",
        "not slow and not flow" + which + without,
        database_url=url,
    )


def with_redis(*arguments: str) -> bool:
    """The unit tests with Redis where there is no PostgreSQL."""
    return pytest(
        *arguments, *APPS, "-n", "4", "-m", "redis and not postgres and not slow and not flow"
    )


def rest(absent: dict[str, str]) -> bool:
    """What `check` did not run: unit tests on PostgreSQL and Redis, then end-to-end tests."""
    if "postgres" in absent:
        passed = "redis" in absent or with_redis()
        return stories(absent) and passed
    with postgres.cluster() as url:
        passed = on_postgresql(absent, url, "--one-in-five")
        os.environ["TEST_POSTGRES_URL"] = url
        return stories(absent) and passed


def left_out(absent: dict[str, str]) -> str:
    """A marker expression that leaves out browser tests and what the machine lacks."""
    return "".join(f" and not {marker}" for marker in {"browser", *absent} - {"production"})


def production(without: str) -> bool:
    """Tests of the system installed by docs/install.md: only one, as it has a dozen processes."""
    # Late: it reads settings, which this process does not have.
    from tests.production.installation import errors, installed

    with installed() as home:
        wanted = (*marked("production"), "-n", "3", "--dist", "worksteal")
        passed = pytest(*wanted, "-m", "production" + without, installed_at=home)
        # No request may cause an error inside the services.
        if found := errors(home):
            print(*found, sep="\n")
            with Path(os.environ[FAILURES]).open("a") as lines:
                lines.write(f"an error inside the services: {found[0][:200]}\n")
        return passed and not found


def stories(absent: dict[str, str]) -> bool:
    """Sweeps and kills beside the tests of the installed system, whose installation takes half a
    minute; then flows, file by file, beside the browser tests, which wait for pages; then faults,
    which mostly wait, with `beside_faults` beside them.
    """
    alone = without = left_out(absent) + " and not long"
    if "production" not in absent:
        # The tests of the installed system replace runs against a development server.
        without += " and not production"
    # It takes minutes to kill archivers everywhere: that is left to the campaign.
    swept = [each for each in marked("sweep") if each != "tests/faults/test_archiver.py"]
    with ThreadPoolExecutor(1) as pool:
        sweeps = (*swept, "-n", "3", *BY_FILE, "-m", "sweep" + without)
        told = pool.submit(pytest, *sweeps, together=True)
        passed = "production" in absent or production(alone)
        passed = told.result() and passed
    flows = (
        *marked("flow", "node", "slow"),
        "-n",
        "4",
        *BY_FILE,
        "-m",
        "(flow or node or slow) and not faults" + without,
    )
    with ThreadPoolExecutor(2) as pool:
        told = pool.submit(pytest, *flows, together=True)
        pages = (*marked("browser"), "-n", "2", *BY_FILE, "-m", "browser and not long")
        shown = "browser" in absent or pytest(*pages, together=True)
        passed = told.result() and shown and passed
    # The longest file first.
    hurt = ("tests/faults/test_scenarios.py", *marked("faults"), "-n", "3", *BY_FILE)
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(beside_faults)
        passed = pytest(*hurt, "-m", "faults" + without) and passed
        return other.result() and passed


def beside_faults() -> bool:
    """Tests on the other Python; then what differs on a clone without the shared files."""
    passed = run_other_python()
    if not SECURITY:
        return passed
    # All other tests of these files ran already, with the same code and data.
    passed = (
        pytest(*marked("vectors"), "--collect-only", "-q", shared=False, together=True) and passed
    )
    files = ("tests/test_cases.py", "tests/contract/test_failure_modes.py")
    return pytest(*files, shared=False, together=True) and passed


def run_other_python() -> bool:
    """Whether the group `again` passed on OTHER_PYTHON; true if that is unset."""
    python = os.environ.get("OTHER_PYTHON")
    if not python:
        return True
    done = subprocess.run(
        [python, "-m", "tests.run", "again"], check=False, capture_output=True, text=True
    )
    print(done.stdout, done.stderr, sep="\n", flush=True)
    return done.returncode == 0


def long(absent: dict[str, str]) -> bool:
    """The tests that CI leaves out, at CI's counts, on PostgreSQL where they need one."""
    without = "".join(f" and not {marker}" for marker in absent)
    # With PostgreSQL, `on_postgresql` runs those of its tests.
    elsewhere = "all" if "postgres" in absent else "embedded"
    told = (*marked("long"), "-n", "3", *BY_FILE, "--database-tests", elsewhere)
    passed = pytest(*told, "-m", "long and not production and not browser" + without, report=True)
    if "browser" not in absent:
        # Apart: Playwright's event loop stays in the process.
        passed = pytest(*told, "-m", "long and browser" + without) and passed
    if "production" not in absent:
        passed = production(" and long" + without) and passed
    if "postgres" in absent:
        return passed
    with postgres.cluster() as url:
        passed = on_postgresql(absent, url) and passed
        if "redis" not in absent:
            # Tests of verify, batch and introspect at the lean endpoint, with the replay cache in
            # Redis. CI compares the endpoints (verifier/tests/test_lean_equality.py).
            again = ("--endpoint", "lean", "--replay-cache", "redis", *BY_TEST)
            alone = ("-m", "not slow and not postgres and not redis")
            passed = pytest("verifier/tests", *again, *alone, database_url=url) and passed
        return passed


def campaign(absent: dict[str, str]) -> bool:
    """Longer versions and time limits (CAMPAIGN=1, tests/conftest.py, tests/time_limits.py)."""
    without = "".join(f" and not {marker}" for marker in absent)
    alone = ("-m", without.removeprefix(" and "))
    passed = pytest("tests/faults", "-m", "(faults or sweep)" + without)
    passed = pytest("tests/campaign", *alone) and passed
    # Also, on SQLite, the tests that CI runs on PostgreSQL only.
    passed = unit(absent | {"postgres": ""}) and passed
    if {"postgres", "redis"} & absent.keys():
        return pytest(*paced(), *alone) and passed
    with postgres.cluster() as url:
        passed = pytest(*paced(), *alone, database_url=url) and passed
        both = ("verifier/tests/test_lean_equality.py", "verifier/tests/test_lean_vectors.py")
        passed = pytest(*both, database_url=url) and passed
        # On the other Python, with the Django locked for it: code that parses bytes in Python
        # alone, what users run, and the registry's API.
        again = ("--endpoint", "lean", "--replay-cache", "database", "-n", "2")
        alone = ("-m", "not slow and not postgres and not redis")
        return pytest("verifier/tests", *again, *alone, database_url=url) and passed


def main() -> int:
    if FAILURES in os.environ:
        return run(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "failures"
        os.environ[FAILURES] = str(file)
        code = run(sys.argv[1])
        if file.exists():
            print("FAILED:", file.read_text()[-4000:], sep="\n", flush=True)
    return code


def run(group: str) -> int:
    absent = missing(group)
    if absent and REQUIRE_ALL:
        print("REQUIRE_ALL=1, but not here:", ", ".join(absent.values()))
        return 1
    if group == "unit":
        passed = unit(absent)
    elif group == "unit-before-rest":
        passed = unit(absent, of="sample")
    elif group == "coverage":
        passed = coverage(absent)
    elif group == "again":
        # On the other Python, with the Django locked for it: the wheel that users install, and a
        # server that its clients go through.
        again = (
            "agentauth/protocol",
            "agentauth/sdk",
            "tests/vectors",
            # Random capabilities: a minute of arithmetic that no version of Python changes.
            "--ignore=agentauth/protocol/tests/test_capability_properties.py",
            *BY_TEST,
        )
        with ThreadPoolExecutor(1) as pool:
            served = "tests/flows/test_sdk_service_provider.py"
            told = pool.submit(pytest, served, "-m", "flow", together=True)
            passed = pytest(*again, "-m", "not slow and not postgres and not redis and not flow")
            passed = told.result() and passed
    elif group == "rest":
        passed = rest(absent)
    elif group == "production":
        passed = "production" not in absent and production(left_out(absent))
    elif group == "long":
        passed = long(absent)
    elif group == "campaign":
        passed = campaign(absent)
    else:
        passed = pytest("tests/browser", "-m", "browser", "-k", "every_page", "--screenshots")
    for marker, program in absent.items():
        print(f"NOT RUN: tests marked '{marker}', because {program} is not here")
    if not SECURITY:
        # External data that no package installs: a clone without it passes even with REQUIRE_ALL=1.
        print(f"NOT RUN: tests marked 'vectors', because {ABSENT}")
    return 0 if passed else 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory(prefix="t-", dir=memory()) as folder:
        os.environ["TMPDIR"] = tempfile.tempdir = folder
        # Servers that run as other users have their files here too.
        Path(folder).chmod(0o1777)
        os.environ["MIGRATED"] = tempfile.mkdtemp(prefix="migrated-")
        sys.exit(main())
