"""Periodic work is the same whether Celery beat or `manage.py jobs` does it."""

from collections.abc import Callable

import pytest
from django.conf import settings
from django.db import OperationalError
from django.utils.module_loading import import_string

from agentauth.management.commands import jobs

LOOP = "agentauth.management.commands.jobs"
# Where a task and where the loop look the same service up.
SERVICES = {
    "verifier.tasks.keeper.keep_home": "keep_home",
    "verifier.tasks.drain_redis": "draining.drain_redis",
    "audit.tasks.seal_audit": "seal_audit",
    "kms.tasks.promote_due_keys": "promote_due_keys",
    "registry.tasks.expire_everything": "registry_expiry.expire_everything",
    "verifier.tasks.expire_everything": "verifier_expiry.expire_everything",
    "approvals.tasks.expire_everything": "approvals_expiry.expire_everything",
}


def noted(calls: list[str], service: str) -> Callable[..., int]:
    def call(**_named: object) -> int:
        calls.append(service)
        return 0

    return call


def test_beat_and_the_loop_call_the_same_services(monkeypatch: pytest.MonkeyPatch) -> None:
    by_beat: list[str] = []
    by_loop: list[str] = []
    for task, service in SERVICES.items():
        monkeypatch.setattr(task, noted(by_beat, service))
        monkeypatch.setattr(f"{LOOP}.{service}", noted(by_loop, service))
    for entry in settings.CELERY_BEAT_SCHEDULE.values():
        import_string(str(entry["task"]))()
    jobs.Command().work(slow=True)
    assert sorted(by_beat) == sorted(by_loop) == sorted(SERVICES.values())


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
    assert sorted([*done, broken]) == sorted(SERVICES.values())
    assert "did not come to its end" in caplog.text
