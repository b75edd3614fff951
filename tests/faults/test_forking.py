"""A server loads its application once; its forks share no live objects and answer at once."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.cpu_time import children
from tests import postgres, redis_servers
from tests.faults.stage import is_alive
from tests.live import ROOT, LiveRegistry, LiveServer, LiveVerifier
from tests.waiting import until

pytestmark = [pytest.mark.faults, pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]

TICKS = os.sysconf("SC_CLK_TCK")
# Prints, per line, what a server process would share with all others.
LOOK = """
import importlib, os, sys
server = importlib.import_module(sys.argv[1])
assert server.preload_app
importlib.import_module(sys.argv[2])
from pathlib import Path
from django.db import connections
for task in Path("/proc/self/task").iterdir():
    if task.name != str(os.getpid()):
        print("thread", (task / "comm").read_text())
for made in connections.all(initialized_only=True):
    if made.connection is not None:
        print("connection", made.alias)
for number in Path("/proc/self/fd").iterdir():
    # The list itself is open while it is read.
    target = os.readlink(number) if number.is_symlink() else ""
    if target.startswith(("socket:", "anon_inode:")):
        print("open", target)
for left in server.METRICS_DIRECTORY.glob("*"):
    print("file", left)
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveRegistry]:
    """A migrated database; no server runs."""
    with postgres.server() as database, redis_servers.server() as redis:
        env = {"REDIS_URL": redis.url}
        made = LiveRegistry(
            tmp_path_factory.mktemp("forking"), database_url=database.url, workers=1, env=env
        )
        made.prepare()
        yield made


@pytest.mark.parametrize(
    ("server", "application"),
    [
        ("agentauth.server.verifier_gunicorn", "agentauth.server.verifier_application"),
        ("agentauth.server.web_gunicorn", "agentauth.wsgi"),
    ],
)
def test_what_is_loaded_before_the_fork_starts_nothing(
    registry: LiveRegistry, server: str, application: str
) -> None:
    metrics = registry.directory / f"before-the-fork-{server}"
    metrics.mkdir()
    env = {
        **registry.env,
        "REDIS_URL": "redis://127.0.0.1:1",
        "PROMETHEUS_MULTIPROC_DIR": str(metrics),
    }
    look = [sys.executable, "-c", LOOK, server, application]
    done = subprocess.run(look, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.parametrize(
    "server", ["agentauth.server.verifier_gunicorn", "agentauth.server.web_gunicorn"]
)
def test_RF_4_no_server_waits_long_for_the_database(registry: LiveRegistry, server: str) -> None:
    ask = f"""
import django, {server} as server
django.setup()
server.on_starting(None)
from django.db import connection
with connection.cursor() as cursor:
    cursor.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
    print(*cursor.fetchone())
"""
    env = {
        **registry.env,
        "DJANGO_SETTINGS_MODULE": "agentauth.settings",
        "REDIS_URL": "redis://127.0.0.1:1",
        "PROMETHEUS_MULTIPROC_DIR": str(registry.directory / f"metrics-of-{server}"),
    }
    done = subprocess.run(
        [sys.executable, "-c", ask], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["2s", "1600ms"], done.stderr


@pytest.mark.parametrize("kind", ["verifier", "web"])
def test_RF_1_a_process_in_the_place_of_one_that_died_loads_nothing(
    registry: LiveRegistry, kind: str
) -> None:
    """Measured in processor time until the answer, so that a busy machine makes no difference."""
    live: LiveServer = LiveVerifier(registry, redis_url=registry.env["REDIS_URL"], workers=1)
    if kind == "web":
        live = registry
    live.start()
    try:
        assert live.process
        server = live.process.pid
        [old] = children(server)
        os.kill(old, signal.SIGKILL)
        until(
            lambda: not is_alive(old) and children(server) not in ([], [old]),
            "nobody takes its place",
        )
        assert httpx.get(f"{live.url}/health/live", timeout=60).status_code == 200
        [new] = children(server)
        assert seconds_of(new) < seconds_of(server) / 3
    finally:
        live.stop()


def seconds_of(pid: int) -> float:
    """Processor time of a process, in seconds."""
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / TICKS
