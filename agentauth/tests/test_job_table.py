"""Periodic work is the same, whether Celery beat or `manage.py jobs` runs it."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.conf import settings
from django.core.management import call_command
from django.db import OperationalError
from prometheus_client import REGISTRY

from agentauth import job_table
from agentauth.celery import app
from agentauth.job_table import JOBS
from agentauth.management.commands import jobs
from agentauth.protocol.errors import NoteError

ROOT = Path(__file__).resolve().parents[2]
# How Celery code sends a task.
SENDS = {"delay", "delay_on_commit", "apply_async", "apply_async_on_commit", "send_task"}
BY_NAME = {job.name: job for job in JOBS}


@pytest.fixture(autouse=True)
def _none_rests_or_is_held(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(job_table, "may_act", lambda: True)
    yield
    for job in JOBS:
        job._rests_until = 0.0


@pytest.mark.parametrize("own_session", [True, False])
def test_the_loop_steps_back_behind_other_sessions_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, own_session: bool
) -> None:
    nice: list[int] = []
    monkeypatch.setattr(os, "nice", nice.append)
    monkeypatch.setattr(os, "getsid", lambda _: os.getpid() if own_session else 1)
    monkeypatch.setattr(jobs, "AUTOGROUP", tmp_path / "autogroup")
    jobs.step_back()
    assert nice == [jobs.NICENESS]
    # A session shared with other processes must not be throttled by this one.
    assert [each.read_text() for each in tmp_path.iterdir()] == [str(jobs.NICENESS)] * own_session
    monkeypatch.setattr(jobs, "AUTOGROUP", tmp_path / "away" / "autogroup")
    jobs.step_back()


def noted(calls: list[str], name: str) -> Callable[..., None]:
    def call(**_named: object) -> None:
        calls.append(name)

    # It keeps its name, which is the job's.
    call.__module__, call.__name__ = BY_NAME[name].run.__module__, BY_NAME[name].run.__name__
    return call


def raising(error: Exception, name: str) -> Callable[..., None]:
    def call(**_named: object) -> None:
        raise error

    call.__module__, call.__name__ = BY_NAME[name].run.__module__, BY_NAME[name].run.__name__
    return call


def do_all_of_them() -> None:
    """Run each job once, as the loop does."""
    command = jobs.Command()
    command.work(slow=True)
    for job in JOBS:
        if job.waits:
            command.do_aside(job)


@pytest.mark.django_db
def test_beat_and_the_loop_call_the_same_services(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    for job in JOBS:
        monkeypatch.setattr(job, "run", noted(done, job.name))
    for entry in app.conf.beat_schedule.values():
        assert app.tasks[entry["task"]]() is True
    by_beat, done[:] = sorted(done), []
    do_all_of_them()
    assert by_beat == sorted(done) == sorted(BY_NAME)
    assert len(BY_NAME) == len(JOBS)


def test_one_worker_command_has_a_thread_for_each_job() -> None:
    assert (app.conf.worker_pool, app.conf.worker_concurrency) == ("threads", len(JOBS))
    # A single queue, the one a worker consumes by default.
    queues = {app.amqp.router.route({}, name)["queue"].name for name in BY_NAME}
    assert queues == set(app.amqp.queues.consume_from) == {"celery"}


def test_celery_knows_its_own_settings_alone() -> None:
    """A worker with remote control would show its configuration to any client of the broker."""
    ours = {name for name in dir(settings) if name.isupper()}
    assert {"SECRET_KEY", "SUBJECT_KEYS", "REDIS_URL"} <= ours
    assert not ours & set(app.conf)


@pytest.mark.django_db
def test_runs_are_counted_by_their_outcome_and_held_ones_are_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job = BY_NAME["audit.seal_audit"]

    def counted(outcome: str) -> float:
        labels = {"name": job.name, "outcome": outcome}
        return REGISTRY.get_sample_value("agentauth_job_seconds_count", labels) or 0

    ok, failed = counted("ok"), counted("failed")
    monkeypatch.setattr(job, "run", noted([], job.name))
    job.do()
    monkeypatch.setattr(job_table, "may_act", lambda: False)
    job.do()
    assert (counted("ok"), counted("failed")) == (ok + 1, failed)
    monkeypatch.setattr(job_table, "may_act", lambda: True)
    monkeypatch.setattr(job, "run", raising(OSError("away"), job.name))
    with pytest.raises(OSError, match="away"):
        job.do()
    assert (counted("ok"), counted("failed")) == (ok + 1, failed + 1)
    ended = REGISTRY.get_sample_value("agentauth_job_ended_timestamp_seconds", {"name": job.name})
    assert ended
    assert abs(ended - time.time()) < 600


def test_a_job_that_is_running_is_not_begun_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hanging store then takes only one worker thread, however often beat sends the task."""
    job, begun, gate = BY_NAME["audit.archive_due"], threading.Event(), threading.Event()

    def hang(**_named: object) -> None:
        begun.set()
        gate.wait(20)

    monkeypatch.setattr(job, "run", hang)
    thread = threading.Thread(target=job.do)
    thread.start()
    assert begun.wait(20)
    assert [job.do(), job.do()] == [False, False]
    gate.set()
    thread.join()
    assert job.do() is True


def test_a_job_that_failed_at_a_store_rests_before_it_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, tried = BY_NAME["audit.checkpoint_log"], []

    def away(**_named: object) -> None:
        tried.append(1)
        raise OSError("the store is away")

    monkeypatch.setattr(job, "run", away)
    with pytest.raises(OSError, match="away"):
        job.do()
    assert job.do() is False
    monkeypatch.setattr(job_table, "REST_SECONDS", 0.0)
    job._rests_until = 0.0
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            job.do()
    assert tried == [1, 1, 1]


def test_nothing_but_beat_sends_a_task() -> None:
    """No code that answers requests sends or imports tasks, so none of it waits for the broker."""
    found = set()
    apps = ("agentauth", "approvals", "audit", "kms", "registry", "verifier")
    for path in (each for part in apps for each in (ROOT / part).rglob("*.py")):
        if "tests" in path.parts or path.name == "tasks.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in SENDS:
                found.add(f"{path.relative_to(ROOT)}: {node.attr}")
            if isinstance(node, ast.ImportFrom) and (
                str(node.module).endswith("tasks") or "tasks" in {each.name for each in node.names}
            ):
                found.add(f"{path.relative_to(ROOT)}: {node.module}")
    assert found == set()


def test_task_not_taken_before_its_next_turn_expires() -> None:
    """As sent over the wire: a worker reads `expires` from the message."""
    with Celery(broker="memory://") as here, here.connection_for_write() as connection:
        here.conf.update(beat_schedule=app.conf.beat_schedule)
        for entry in here.conf.beat_schedule.values():
            before = datetime.now(UTC)
            here.send_task(entry["task"], **entry["options"], connection=connection)
            queue = here.amqp.router.route({}, entry["task"])["queue"](connection.default_channel)
            sent = queue.get(no_ack=True)
            assert sent.headers["task"] == entry["task"]
            lives = datetime.fromisoformat(sent.headers["expires"]) - before
            assert (
                timedelta(0) < lives - timedelta(seconds=entry["schedule"]) < timedelta(seconds=60)
            )
            assert queue.get(no_ack=True) is None


def test_fast_job_turns_watch_the_home_drain_redis_and_number_the_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    for job in JOBS:
        monkeypatch.setattr(job, "run", noted(done, job.name))
    jobs.Command().work(slow=False)
    assert done == [
        "verifier.keep_home",
        "verifier.mark_history",
        "verifier.drain_redis",
        "audit.seal_audit",
    ]


@pytest.mark.django_db
@pytest.mark.parametrize("broken", BY_NAME)
def test_a_job_that_fails_holds_up_no_other(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = OperationalError("canceling statement due to statement timeout")
    done: list[str] = []
    for job in JOBS:
        how = raising(away, broken) if job.name == broken else noted(done, job.name)
        monkeypatch.setattr(job, "run", how)
    do_all_of_them()
    assert sorted([*done, broken]) == sorted(BY_NAME)
    assert f"{broken} failed and will be retried" in caplog.text


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), KeyError("Key"), NoteError("a note")]
)
def test_nothing_a_store_or_a_disk_does_stops_those_who_number(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = [job for job in JOBS if job.waits]
    for job in waiting:
        monkeypatch.setattr(job, "run", raising(fault, job.name))
        jobs.Command().do_aside(job)
    assert caplog.text.count("failed and will be retried") == len(waiting) == 6


def loop_with(*, hangs: bool, then: str) -> None:
    """`manage.py jobs` in this process with stub jobs. Ends the process, or should."""
    loop: Any = jobs
    table: Any = job_table
    hanging = threading.Event()

    def hang(**_named: object) -> None:
        if hangs:
            # Like the archive's worker thread, which Python waits for at exit.
            slept = ThreadPoolExecutor().submit(time.sleep, 3_600)
            hanging.set()
            slept.result()

    def work(self: jobs.Command, *, slow: bool) -> None:
        if hangs:
            hanging.wait()
        if then == "fails":
            raise LookupError("nobody foresaw this")
        os.kill(os.getpid(), signal.SIGTERM)

    for job in JOBS:
        job.run = hang if job.name == "audit.archive_due" else noted([], job.name)
    loop.Command.work = work
    # There is no database to ask.
    table.may_act = lambda: True
    loop.check_start = lambda: None
    call_command("jobs")


@pytest.mark.parametrize(
    ("hangs", "then", "code"),
    [(True, "fails", 1), (False, "fails", 1), (True, "stops", 0), (False, "stops", 0)],
)
def test_loop_ends_even_if_a_job_hangs_and_exit_code_shows_failure(
    hangs: bool, then: str, code: int
) -> None:
    program = (
        "import django; django.setup();"
        "from agentauth.tests.test_job_table import loop_with;"
        f"loop_with(hangs={hangs}, then={then!r})"
    )
    # Far less than the hang, far more than a clean exit takes.
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ("nobody foresaw this" in ended.stderr) == (then == "fails")
