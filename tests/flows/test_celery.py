"""Celery's beat and one worker, run by an ordinary user on a real Redis, logging each step.

Only the log level is unusual; with the default they run in tests/production/test_services.py.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
from celery import Celery

from tests import redis_servers, unprivileged
from tests.conftest import fresh_database
from tests.live import LiveRegistry
from tests.waiting import until

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis]
PASSWORD = "a-password-of-the-broker"
COMMANDS = ("celery -A agentauth beat", "celery -A agentauth worker")


@pytest.fixture
def registry(postgres_url: str, tmp_path: Path) -> Iterator[LiveRegistry]:
    """Without servers: a database with unnumbered events, and a broker user as in operations.md."""
    with redis_servers.server() as broker:
        with broker.client() as client:
            rules = redis_servers.rights("broker")
            client.execute_command("ACL", "SETUSER", "broker", "on", f">{PASSWORD}", *rules)
        # As in the image: only one folder is writable.
        (tmp_path / "var").mkdir(mode=0o700)
        (tmp_path / "app").mkdir(mode=0o555)
        env = {
            "CELERY_BROKER_URL": f"redis://broker:{PASSWORD}@127.0.0.1:{broker.port}/1",
            "REDIS_URL": broker.registry_url,
            "LOG_FORMAT": "json",
            "VAR_DIR": str(tmp_path / "var"),
        }
        made = LiveRegistry(
            tmp_path, database_url=fresh_database(postgres_url, "flows_celery"), env=env
        )
        made.prepare()
        unprivileged.give_to_user(tmp_path / "var")
        yield made


@contextlib.contextmanager
def started(registry: LiveRegistry, command: str) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """The process of a command from the docs, and its log; it must stop at the end when asked."""
    module, *arguments = command.split()
    log = registry.directory / f"{arguments[-1]}.log"
    env = {**registry.env, "PYTHONPATH": str(unprivileged.ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    python = [
        *unprivileged.as_user(),
        sys.executable,
        "-m",
        "tests.unprivileged",
        module,
        *arguments,
    ]
    with log.open("wb") as told:
        process = subprocess.Popen(
            python,
            cwd=registry.directory / "app",
            env=env,
            stdout=told,
            stderr=told,
            start_new_session=True,
        )
    try:
        yield process, log
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_a_worker_and_beat_log_each_step_as_json_where_they_are_asked_to(
    registry: LiveRegistry,
) -> None:
    registry.env["LOG_LEVEL"] = "INFO"
    with (
        started(registry, COMMANDS[0]) as (_, beat_log),
        started(registry, COMMANDS[1]) as (_, worker_log),
    ):
        until(lambda: " succeeded in " in worker_log.read_text(), "the worker does nothing", 120)
    lines = [
        json.loads(line) for log in (beat_log, worker_log) for line in log.read_text().splitlines()
    ]
    assert {"celery.beat", "celery.apps.worker", "celery.app.trace"} <= {
        line["logger"] for line in lines
    }


@pytest.mark.long
def test_a_worker_answers_no_remote_control(registry: LiveRegistry) -> None:
    registry.env["LOG_LEVEL"] = "INFO"
    with started(registry, COMMANDS[0]), started(registry, COMMANDS[1]) as (_, log):
        until(lambda: " succeeded in " in log.read_text(), "the worker does nothing", 120)
        # As a client that may do everything.
        url = f"redis://127.0.0.1:{urlsplit(registry.env['REDIS_URL']).port}/1"
        with redis.Redis.from_url(url) as server:
            # Neither a mailbox nor events: the worker listens for tasks only.
            assert server.keys("_kombu.binding.*") == [b"_kombu.binding.celery"]
            assert server.pubsub_channels() == []
        with Celery(broker=url) as client:
            inspect = client.control.inspect(timeout=3)
            assert (inspect.conf(), inspect.ping()) == (None, None)


def test_the_brokers_user_reaches_no_other_key(registry: LiveRegistry) -> None:
    with redis.Redis.from_url(registry.env["CELERY_BROKER_URL"], db=0) as client:
        for act in (
            lambda: client.get("aa:history"),
            lambda: client.set("aa:history", "x"),
            client.flushall,
        ):
            with pytest.raises(redis.exceptions.NoPermissionError):
                act()
