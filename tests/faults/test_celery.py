"""kill -9 of real Celery workers inside their tasks: nothing is lost or done twice."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, LiteralString

import psycopg
import pytest

from tests import redis_servers
from tests.conftest import CAMPAIGN, fresh_database
from tests.faults.table import Results
from tests.live import ROOT, LiveRegistry
from tests.waiting import until

pytestmark = [pytest.mark.sweep, pytest.mark.postgres, pytest.mark.redis]
KILLS = 200 if CAMPAIGN else 4
# Inside each task, before and after each of its effects. CI runs the first ones.
POINTS = (
    "archive.after_manifest", "checkpoint.after_commit", "sequence.after_head",
    "archive.after_objects",
    "checkpoint.before_copied", "archive.after_row", "archive.after_stage", "archive.after_object",
    "archive.after_proof",
    "checkpoint.after_copy", "sequence.before_commit", "sequence.after_commit",
)  # fmt: skip
# Later tasks reach each point, though a slow machine needs time.
REACHED_SECONDS = 300


@pytest.fixture
def registry(postgres_url: str, tmp_path: Path) -> Iterator[LiveRegistry]:
    """Without servers: a database, an external store and a broker."""
    with redis_servers.server() as broker:
        env = {
            "CELERY_BROKER_URL": f"{broker.url}/0",
            "AUDIT_STORE": f"file:{tmp_path / 'outside'}",
            "DJANGO_SETTINGS_MODULE": "agentauth.settings",
        }
        made = LiveRegistry(
            tmp_path, database_url=fresh_database(postgres_url, "faults_celery"), env=env
        )
        made.prepare()
        yield made


@contextlib.contextmanager
def running(registry: LiveRegistry, log: Path, *module: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose whole process group is killed at the end."""
    with log.open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            cwd=ROOT, env=registry.env, stdout=told, stderr=told, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def worker(
    registry: LiveRegistry, *pool: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    quiet = ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")
    log = registry.directory / "worker.log"
    return running(
        registry, log, "celery", "-A", "tests.faults.celery_work", "worker", *quiet, *pool
    )


def done(registry: LiveRegistry) -> int:
    """How many tasks workers have reported as done."""
    return (registry.directory / "worker.log").read_text().count(" succeeded in ")


def kill_in_mid_task(registry: LiveRegistry, turn: int, dice: random.Random) -> None:
    """One worker, which dies at a point of its task, or is killed with its children at random."""
    if turn % 3 == 2:
        before = done(registry)
        with worker(registry, "-c", "2"):
            until(lambda: done(registry) > before, "the worker does nothing", REACHED_SECONDS)
            time.sleep(dice.uniform(0, 0.3))
        return
    registry.fault_at(POINTS[turn // 3 * 2 % len(POINTS) + turn % 3])
    # With `solo`, the worker process itself runs the tasks.
    with worker(registry, "-P", "solo") as process:
        assert process.wait(REACHED_SECONDS) == -signal.SIGKILL
    registry.fault_at("")


def work(registry: LiveRegistry, *arguments: str) -> Any:
    command = [sys.executable, "-m", f"tests.faults.{arguments[0]}", *arguments[1:]]
    finished = subprocess.run(
        command, cwd=ROOT, env=registry.env, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    return json.loads(finished.stdout)


@pytest.mark.long
def test_RF_14_what_workers_do_that_are_killed_in_mid_task_is_done_once(
    registry: LiveRegistry, tmp_path: Path, results: Results
) -> None:
    told, outside, dice = tmp_path / "told", tmp_path / "outside", random.Random(14)
    with running(registry, tmp_path / "beat.log", "tests.faults.celery_work") as beat:
        with running(
            registry, tmp_path / "writer.log", "tests.faults.log_work", "record", str(told), "0.2"
        ) as writer:
            for turn in range(KILLS):
                kill_in_mid_task(registry, turn, dice)
            assert writer.poll() is None
        # No more events come; the next worker does the rest, through tasks alone.
        acknowledged = told.read_text().rpartition("\n")[0].split()
        last = work(registry, "log_work", "events")["events"]
        with worker(registry, "-c", "2"):
            until(
                lambda: archived_to(registry) >= last,
                "the last worker does not do it all",
                REACHED_SECONDS,
            )
        assert beat.poll() is None
    hold_the_log(registry, acknowledged, last)
    hold_the_archive(registry, outside)
    results.kills += KILLS
    results.lines.append(
        f"kill -9 of Celery workers in mid task: {KILLS} kills, {done(registry)} tasks done, "
        f"{last} events, "
        f"{len(list((outside / 'segments').iterdir()))} segments"
    )


def archived_to(registry: LiveRegistry) -> int:
    [(end,)] = sql(registry, 'SELECT coalesce(max("end"), 0) FROM audit_segment')
    return int(end)


def sql(registry: LiveRegistry, query: LiteralString) -> list[tuple[Any, ...]]:
    with psycopg.connect(registry.env["DATABASE_URL"]) as connection:
        return connection.execute(query).fetchall()


def hold_the_log(registry: LiveRegistry, acknowledged: list[str], last: int) -> None:
    """Each acknowledged event has one number; no number is missing or used twice."""
    told = registry.directory / "acknowledged"
    told.write_text("".join(f"{each}\n" for each in acknowledged))
    found = work(registry, "log_work", "leaves", str(told))
    assert found["missing"] == []
    assert len(acknowledged) > KILLS
    assert found["numbers"] == list(range(last))
    verdict = registry.manage("verify_audit")
    assert (verdict["ok"], verdict["tree_size"]) == (True, last), verdict


def hold_the_archive(registry: LiveRegistry, outside: Path) -> None:
    """Segments exist once and form a chain; the store has exactly the log's checkpoints."""
    signed = sql(registry, "SELECT note FROM audit_checkpoint ORDER BY size")
    assert [path.read_text() for path in sorted((outside / "checkpoints").iterdir())] == [
        note for (note,) in signed
    ]
    rows = work(registry, "archive_work", "segments")
    manifests = [path.read_bytes() for path in sorted((outside / "segments").iterdir())]
    assert [row[2] for row in rows] == [hashlib.sha256(each).hexdigest() for each in manifests]
    assert [row[0] for row in rows] == [0, *(row[1] for row in rows)][:-1]
    alone = registry.manage("verify_audit", "--archive", registry.env["AUDIT_STORE"])
    assert (alone["ok"], alone["tree_size"]) == (True, rows[-1][1]), alone
