"""Celery as docs/operations.md has it started: beat and one worker, by an ordinary user, over a real Redis."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import ordinary, redis_servers
from tests.conftest import fresh_database
from tests.faults.stage import until
from tests.live import LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]
OPERATIONS = ordinary.ROOT / "docs/operations.md"
COMMANDS = ("celery -A agentauth beat", "celery -A agentauth worker")


@pytest.fixture
def registry(postgres_url: str, tmp_path: Path) -> Iterator[LiveRegistry]:
    """Without its servers: a database with events that wait for their numbers, and a broker."""
    with redis_servers.server() as broker:
        # As in the image: one folder alone may be written into.
        (tmp_path / "var").mkdir(mode=0o700)
        (tmp_path / "app").mkdir(mode=0o555)
        env = {
            "CELERY_BROKER_URL": f"{broker.url}/1",
            "REDIS_URL": broker.url,
            "LOG_FORMAT": "json",
            "VAR_DIR": str(tmp_path / "var"),
        }
        made = LiveRegistry(tmp_path, database_url=fresh_database(postgres_url, "flows_celery"), env=env)
        made.prepare()
        ordinary.give_to_user(tmp_path / "var")
        yield made


@contextlib.contextmanager
def started(registry: LiveRegistry, command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The process of a command from the docs, and its log; it must stop when asked at the end."""
    module, *arguments = command.split()
    log = registry.directory / f"{arguments[-1]}.log"
    env = {**registry.env, "PYTHONPATH": str(ordinary.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [*ordinary.as_user(), sys.executable, "-m", "tests.ordinary", module, *arguments]
    with log.open("wb") as told:
        process = subprocess.Popen(
            python, cwd=registry.directory / "app", env=env, stdout=told, stderr=told, start_new_session=True
        )
    try:
        yield process, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def numbers(registry: LiveRegistry) -> tuple[int, int]:
    """Events that wait for their number, and that have one."""
    with psycopg.connect(registry.env["DATABASE_URL"]) as connection:
        waiting = connection.execute("SELECT count(*) FROM audit_queueentry").fetchone()
        numbered = connection.execute("SELECT count(*) FROM audit_leaf").fetchone()
    assert waiting
    assert numbered
    return waiting[0], numbered[0]


def test_beat_and_one_worker_started_as_documented_number_the_log(registry: LiveRegistry) -> None:
    for command in COMMANDS:
        assert f"`{command}`" in OPERATIONS.read_text()
    assert numbers(registry)[0] > 0
    beat, worker = COMMANDS
    with started(registry, beat) as (beating, beat_log), started(registry, worker) as (working, worker_log):

        def numbered() -> bool:
            assert (beating.poll(), working.poll()) == (None, None), (
                beat_log.read_text() + worker_log.read_text()
            )
            waiting, done = numbers(registry)
            return waiting == 0 and done > 0

        until(numbered, "no process numbers the log", 120)
        assert len(processes(working.pid)) == len(processes(beating.pid)) == 1
    for log in (beat_log, worker_log):
        for line in log.read_text().splitlines():
            assert json.loads(line).keys() >= {"at", "level", "logger", "message"}
    assert list((registry.directory / "app").iterdir()) == []


def processes(session: int) -> list[int]:
    """Of a session, as each of them was started in one of its own."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name) state parent group session …; a name may hold anything.
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                found.append(int(status.parent.name))
    return found


def test_a_worker_and_beat_log_each_step_as_json_where_they_are_asked_to(registry: LiveRegistry) -> None:
    registry.env["LOG_LEVEL"] = "INFO"
    with started(registry, COMMANDS[0]) as (_, beat_log), started(registry, COMMANDS[1]) as (_, worker_log):
        until(lambda: " succeeded in " in worker_log.read_text(), "the worker does nothing", 120)
    lines = [json.loads(line) for log in (beat_log, worker_log) for line in log.read_text().splitlines()]
    assert {"celery.beat", "celery.apps.worker", "celery.app.trace"} <= {line["logger"] for line in lines}
