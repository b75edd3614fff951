"""No job changes a database whose history is in doubt (SA-13)."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from agentauth.job_table import JOBS
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.checkpoints.checkpoint_copies import ContradictedError, StoreChangedError, key_of
from audit.checkpoints.rollback_check import Mark
from audit.models import Head, Leaf, QueueEntry
from audit.stores.store_factory import store_at
from audit.tests import proving
from audit.tests.tampering import as_table_owner
from kms.services import ensure_key
from registry.tests.cast import TESTER
from verifier.models import Home
from verifier.services import replay_cache_lease, rollback_hold


@pytest.mark.django_db
@pytest.mark.parametrize(
    "error",
    [ContradictedError("It was set back."), TemporarilyUnavailableError()],
    ids=["set back", "not known yet"],
)
def test_SA_13_no_job_runs_or_numbers_events_during_a_history_halt(
    monkeypatch: pytest.MonkeyPatch, now: datetime, error: Exception
) -> None:
    def compare(_mark: Mark | None) -> None:
        raise error

    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
    monkeypatch.setattr(rollback_hold, "check_history", compare)
    ensure_key(purpose="audit", actor=TESTER, now=now)
    waiting, heads = QueueEntry.objects.count(), list(Head.objects.values())
    assert waiting
    assert [job.name for job in JOBS if job.do()] == []
    assert (QueueEntry.objects.count(), list(Head.objects.values())) == (waiting, heads)


@pytest.mark.django_db
def test_SA_13_the_jobs_hold_what_the_store_knows_more_of(
    settings: Settings, tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Running jobs whose database is swapped below them sign and number nothing more."""
    [job] = [job for job in JOBS if job.name == "audit.checkpoint_log"]
    monkeypatch.setattr(job, "_rests_until", 0.0)
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    ensure_key(purpose="audit", actor=TESTER, now=now)
    proving.grow(3, now=now)
    assert job.do()
    settings.AUDIT_STORE = f"file:{tmp_path / 'another'}"
    proving.grow(1, now=now)
    ensure_key(purpose="token", actor=TESTER, now=now)
    monkeypatch.setattr("audit.checkpoints.signing.EVERY", timedelta(0))
    with pytest.raises(StoreChangedError):
        job.do()
    assert Home.objects.get().held_at is None
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    store_at(settings.AUDIT_STORE).put_once(key_of(9), b"the database that was lost signed this")
    monkeypatch.setattr(job, "_rests_until", 0.0)
    with pytest.raises(ContradictedError, match="9 events"):
        job.do()
    assert "The external store has a checkpoint of 9 events" in Home.objects.get().held_because
    waiting = QueueEntry.objects.count()
    assert waiting
    assert [job.name for job in JOBS if job.do()] == []
    assert QueueEntry.objects.count() == waiting


@pytest.mark.django_db
def test_the_jobs_hold_a_database_whose_log_was_rewritten(
    settings: Settings, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job] = [job for job in JOBS if job.name == "audit.checkpoint_log"]
    monkeypatch.setattr(job, "_rests_until", 0.0)
    monkeypatch.setattr("audit.checkpoints.signing.EVERY", timedelta(0))
    settings.AUDIT_STORE = ""
    ensure_key(purpose="audit", actor=TESTER, now=now)
    proving.grow(3, now=now)
    assert job.do()
    proving.grow(1, now=now)
    with as_table_owner():
        Leaf.objects.filter(leaf_index=1).update(leaf_hash=bytes(32))
        with pytest.raises(ContradictedError):
            job.do()
        assert "is not the one that was signed" in Home.objects.get().held_because
        assert replay_cache_lease.LEASE.halt() is not None


@pytest.mark.django_db
def test_SA_13_a_store_is_moved_before_the_history_can_be_compared(
    settings: Settings, tmp_path: Path, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a new AUDIT_STORE and restarted PostgreSQL, jobs resume by docs/operations.md."""
    monkeypatch.setattr(rollback_hold, "RETRY_SECONDS", 0)
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", 0)
    for job in JOBS:
        monkeypatch.setattr(job, "_rests_until", 0.0)
    old, settings.AUDIT_STORE = f"file:{tmp_path / 'old'}", f"file:{tmp_path / 'old'}"
    for command in ("record_settings", "ensure_keys", "seal_audit"):
        call_command(command)
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
    settings.AUDIT_STORE = f"file:{tmp_path / 'new'}"
    with pytest.raises(CommandError, match="AUDIT_STORE of this process differs"):
        call_command("seal_audit")
    call_command("record_settings", "--change", "AUDIT_STORE")
    with pytest.raises(CommandError, match="was not yet compared"):
        call_command("seal_audit")
    assert [job.name for job in JOBS if job.do()] == []
    call_command("move_audit_store", "--from", old)
    call_command("seal_audit")
    assert all(job.do() for job in JOBS)
    size = Head.objects.get().size
    assert (tmp_path / "new" / key_of(size)).exists()
    assert not (tmp_path / "old" / key_of(size)).exists()
