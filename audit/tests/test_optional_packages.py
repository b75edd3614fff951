"""Without pyarrow nothing is archived and without boto3 no bucket is read; the rest works."""

import sys
from collections.abc import Callable
from datetime import datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidStateError
from audit.archive import parquet
from audit.archive.restoring import Restored, restore_audit
from audit.archive.segment_writing import archive_due
from audit.models import Segment
from audit.optional_packages import install_command
from audit.stores.folder import FolderStore
from audit.stores.store_factory import store_at
from audit.tests.archived import Log
from audit.tests.conftest import MakeEvent

NO_PYARROW = (
    "The log's archive (AUDIT_STORE) needs the package pyarrow, which is not installed. "
    f"Install what production needs: {install_command()}"
)
NO_BOTO3 = (
    "A store at s3: needs the package boto3, which is not installed. "
    f"Install what production needs: {install_command()}"
)


@pytest.fixture
def log(make_event: MakeEvent, now: datetime, tmp_path: Path, settings: Settings) -> Log:
    settings.AUDIT_KEYS = "audit.tests.signing.keys"
    settings.AUDIT_STORE = f"file:{tmp_path / 'archive'}"
    return Log(make_event, now, FolderStore(tmp_path / "archive"), tmp_path / "archive")


@pytest.fixture
def remove(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes a module one that cannot be imported, for the rest of the test."""

    def removed(module: str) -> None:
        monkeypatch.setitem(sys.modules, module, None)
        parquet._parquet.cache_clear()

    return removed


def refusal(*command: str, **options: Any) -> str:
    with pytest.raises(CommandError) as refused:
        call_command(*command, stdout=StringIO(), stderr=StringIO(), **options)
    return str(refused.value)


@pytest.mark.django_db
def test_jobs_archive_once_pyarrow_is_installed(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    log.grown(3)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pyarrow", None)
        assert archive_due(now=log.now) is None
        assert list(log.store.keys()) == []
    log.grown(2)
    assert archive_due(now=log.now) == (0, 5)
    assert log.prove().ok


@pytest.mark.django_db
def test_commands_that_need_pyarrow_say_how_to_install_it(
    log: Log, remove: Callable[[str], None]
) -> None:
    log.grown(3)
    log.archive()
    log.grown(2)
    remove("pyarrow")
    assert refusal("archive_audit") == NO_PYARROW
    assert refusal("verify_audit", "--archive", f"file:{log.folder}") == NO_PYARROW
    assert Segment.objects.count() == 1


@pytest.mark.django_db
def test_restoring_archived_events_needs_no_pyarrow(
    log: Log, remove: Callable[[str], None]
) -> None:
    log.grown(3)
    log.archive()
    remove("pyarrow")
    assert restore_audit(store=log.store) == Restored(segments=1, events=3, restored=0)


@pytest.mark.django_db
def test_commands_given_a_bucket_say_how_to_install_boto3(remove: Callable[[str], None]) -> None:
    remove("boto3")
    for option in ("--store", "--archive"):
        assert refusal("verify_audit", option, "s3://not-opened-yet/log") == NO_BOTO3


def test_bucket_without_boto3_is_refused_and_later_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    uri = "s3://opened-twice/log/"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "boto3", None)
        with pytest.raises(InvalidStateError) as refused:
            store_at(uri)
        assert refused.value.description == NO_BOTO3
    assert repr(store_at(uri)) == uri
