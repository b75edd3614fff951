"""A database whose history is in doubt is left as it is by every job (SA-13)."""

from datetime import datetime

import pytest

from agentauth.jobs import JOBS
from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.copies import ContradictedError
from audit.history import Mark
from audit.models import Head, QueueEntry
from kms.services import ensure_key
from registry.tests.cast import TESTER
from verifier.services import history


@pytest.mark.django_db
@pytest.mark.parametrize(
    "error",
    [ContradictedError("It was set back."), TemporarilyUnavailableError()],
    ids=["set back", "not known yet"],
)
def test_SA_13_meanwhile_no_job_runs_and_nothing_is_numbered(
    monkeypatch: pytest.MonkeyPatch, now: datetime, error: Exception
) -> None:
    def compare(_mark: Mark | None) -> None:
        raise error

    monkeypatch.setattr(history, "VOUCHED", history.Vouched())
    monkeypatch.setattr(history, "check_history", compare)
    ensure_key(purpose="audit", actor=TESTER, now=now)
    waiting, heads = QueueEntry.objects.count(), list(Head.objects.values())
    assert waiting
    assert [job.name for job in JOBS if job.do()] == []
    assert (QueueEntry.objects.count(), list(Head.objects.values())) == (waiting, heads)
