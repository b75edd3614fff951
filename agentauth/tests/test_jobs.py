"""Periodic work is the same whether Celery beat or `manage.py jobs` does it."""

import ast
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from django.core.management import call_command
from django.db import OperationalError
from django.utils.module_loading import import_string

from agentauth.celery import app
from agentauth.management.commands import jobs
from agentauth.protocol.errors import NoteError

ROOT = Path(__file__).resolve().parents[2]
# How a task is sent, in Celery's words.
SENDS = {"delay", "delay_on_commit", "apply_async", "apply_async_on_commit", "send_task"}
LOOP = "agentauth.management.commands.jobs"
# Where a task and where the loop look the same service up.
SERVICES = {
    "verifier.tasks.keeper.keep_home": "keep_home",
    "verifier.tasks.drain_redis": "draining.drain_redis",
    "audit.tasks.seal_audit": "seal_audit",
    "audit.tasks.checkpoint_log": "checkpoint_log",
    "audit.tasks.cosign_log": "cosign_log",
    "audit.tasks.make_months": "create_partitions",
    "audit.tasks.archive_due": "archive_due",
    "kms.tasks.promote_due_keys": "promote_due_keys",
    "kms.tasks.rotate_due_keys": "rotate_due_keys",
    "registry.tasks.expire_everything": "registry_expiry.expire_everything",
    "verifier.tasks.expire_everything": "verifier_expiry.expire_everything",
    "approvals.tasks.expire_everything": "approvals_expiry.expire_everything",
}


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
    # A session it shares with others is not its own to hold back.
    assert [each.read_text() for each in tmp_path.iterdir()] == [str(jobs.NICENESS)] * own_session
    monkeypatch.setattr(jobs, "AUTOGROUP", tmp_path / "away" / "autogroup")
    jobs.step_back()


def noted(calls: list[str], service: str) -> Callable[..., None]:
    def call(**_named: object) -> None:
        calls.append(service)

    return call


def test_beat_and_the_loop_call_the_same_services(monkeypatch: pytest.MonkeyPatch) -> None:
    by_beat: list[str] = []
    by_loop: list[str] = []
    for task, service in SERVICES.items():
        monkeypatch.setattr(task, noted(by_beat, service))
        monkeypatch.setattr(f"{LOOP}.{service}", noted(by_loop, service))
    for entry in app.conf.beat_schedule.values():
        import_string(str(entry["task"]))()
    jobs.Command().work(slow=True)
    command = jobs.Command()
    for beside in (command.sign, command.cosign, command.archive, command.rotate):
        beside()
    assert sorted(by_beat) == sorted(by_loop) == sorted(SERVICES.values())


def test_what_waits_for_stores_and_witnesses_has_a_queue_of_its_own_and_all_else_shares_one() -> None:
    route = app.amqp.router.route
    queues = {
        str(entry["task"]): route({}, entry["task"])["queue"] for entry in app.conf.beat_schedule.values()
    }
    beside = {task: queue.name for task, queue in queues.items() if queue.name != app.conf.task_default_queue}
    assert beside == {
        "audit.tasks.checkpoint_audit": "checkpoints",
        "audit.tasks.cosign_audit": "witnesses",
        "audit.tasks.archive_audit": "archive",
        "kms.tasks.rotate_keys": "archive",
    }
    assert queues["audit.tasks.sequence_audit"].name == "celery"
    # A worker that is told of no queue takes from each: nothing is sent where nobody looks.
    assert set(app.amqp.queues.consume_from) == {queue.name for queue in queues.values()}


def test_nothing_but_beat_sends_a_task() -> None:
    """So nothing that answers a request waits for the broker: no code of ours sends one, nor imports a task to send it."""
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


def test_a_task_that_nobody_took_until_its_next_turn_is_dropped() -> None:
    """As it goes over the wire: a worker looks at `expires` in the message."""
    with Celery(broker="memory://") as here, here.connection_for_write() as connection:
        here.conf.update(
            beat_schedule=app.conf.beat_schedule,
            task_routes=app.conf.task_routes,
            task_queues=app.conf.task_queues,
        )
        for entry in here.conf.beat_schedule.values():
            before = datetime.now(UTC)
            here.send_task(entry["task"], **entry["options"], connection=connection)
            queue = here.amqp.router.route({}, entry["task"])["queue"](connection.default_channel)
            sent = queue.get(no_ack=True)
            assert sent.headers["task"] == entry["task"]
            lives = datetime.fromisoformat(sent.headers["expires"]) - before
            assert timedelta(0) < lives - timedelta(seconds=entry["schedule"]) < timedelta(seconds=60)
            assert queue.get(no_ack=True) is None


def test_between_the_slow_turns_the_home_is_watched_decisions_taken_over_and_the_log_numbered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    for service in SERVICES.values():
        monkeypatch.setattr(f"{LOOP}.{service}", noted(done, service))
    jobs.Command().work(slow=False)
    assert done == ["keep_home", "draining.drain_redis", "seal_audit"]


@pytest.mark.django_db
@pytest.mark.parametrize("broken", SERVICES.values())
def test_a_job_that_fails_holds_up_no_other(
    broken: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def away(**_named: object) -> int:
        raise OperationalError("canceling statement due to statement timeout")

    done: list[str] = []
    for service in SERVICES.values():
        monkeypatch.setattr(f"{LOOP}.{service}", away if service == broken else noted(done, service))
    jobs.Command().work(slow=True)
    command = jobs.Command()
    for beside in (command.sign, command.cosign, command.archive, command.rotate):
        beside()
    assert sorted([*done, broken]) == sorted(SERVICES.values())
    assert "did not come to its end" in caplog.text


@pytest.mark.django_db
@pytest.mark.parametrize(
    "fault", [OSError(28, "No space left on device"), KeyError("Key"), NoteError("a note")]
)
def test_nothing_a_store_or_a_disk_does_stops_those_who_number(
    fault: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(**_named: object) -> int:
        raise fault

    for service in ("checkpoint_log", "cosign_log", "archive_due", "rotate_due_keys"):
        monkeypatch.setattr(f"{LOOP}.{service}", broken)
        broken.__name__ = service
    command = jobs.Command()
    assert not any([command.sign(), command.cosign(), command.archive(), command.rotate()])
    assert caplog.text.count("did not come to its end") == 4


def loop_with(*, hangs: bool, then: str) -> None:
    """`manage.py jobs` in this process, where nothing does anything but what is asked. Ends the process, or should."""
    loop: Any = jobs
    hanging = threading.Event()

    def hang(**_named: object) -> None:
        if hangs:
            # As the archive's hands do: a thread that Python waits for at its end.
            slept = ThreadPoolExecutor().submit(time.sleep, 3_600)
            hanging.set()
            slept.result()

    def work(self: jobs.Command, *, slow: bool) -> None:
        if hangs:
            hanging.wait()
        if then == "fails":
            raise LookupError("nobody foresaw this")
        os.kill(os.getpid(), signal.SIGTERM)

    for service in ("checkpoint_log", "cosign_log", "rotate_due_keys"):
        setattr(loop, service, noted([], service))
    loop.archive_due = hang
    loop.Command.work = work
    call_command("jobs")


@pytest.mark.parametrize(
    ("hangs", "then", "code"),
    [(True, "fails", 1), (False, "fails", 1), (True, "stops", 0), (False, "stops", 0)],
)
def test_the_loop_ends_whatever_hangs_and_a_supervisor_sees_whether_it_failed(
    hangs: bool, then: str, code: int
) -> None:
    program = (
        "import django; django.setup();"
        "from agentauth.tests.test_jobs import loop_with;"
        f"loop_with(hangs={hangs}, then={then!r})"
    )
    # Far less than what hangs, far more than it takes.
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == code, ended.stderr
    assert ("nobody foresaw this" in ended.stderr) == (then == "fails")
