"""A database that was set back is detected by what is known outside it (SA-13)."""

from datetime import datetime
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.checkpoints import log_breaks
from audit.checkpoints.checkpoint_copies import ContradictedError, StoreChangedError, key_of
from audit.checkpoints.log_breaks import break_record, key_of_break
from audit.checkpoints.rollback_check import Mark, check_history, present_mark
from audit.checkpoints.signing import checkpoint_log
from audit.models import CheckpointCopy, LogBreak
from audit.stores import Store
from audit.stores.store_factory import store_at
from audit.tests import proving

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(signing: None, settings: Settings, tmp_path: Path, now: datetime) -> Store:
    """The external store; the log has seven events, four of them signed."""
    settings.AUDIT_STORE = f"file:{tmp_path / 'outside'}"
    proving.grow(4, now=now)
    checkpoint_log(now=now)
    proving.grow(3, now=now)
    return store_at(settings.AUDIT_STORE)


def test_SA_13_a_matching_history_is_accepted(store: Store, now: datetime) -> None:
    mark = present_mark()
    assert mark is not None
    check_history(None)
    check_history(mark)
    # The mark lags the log by events that the jobs have not marked yet.
    proving.grow(2, now=now)
    check_history(mark)


@pytest.mark.parametrize("name", ["", "20261129012233"])
def test_mark_survives_its_text_form(name: str) -> None:
    mark = Mark(name, 7, "0f" * 32)
    assert Mark.parse(mark.text) == mark


@pytest.mark.parametrize(
    "mark", [Mark("", 8, "00" * 32), Mark("", 7, "00" * 32), Mark("20261129012233", 1, "00")]
)
def test_SA_13_mark_that_the_log_does_not_contain_is_a_contradiction(
    store: Store, mark: Mark
) -> None:
    with pytest.raises(ContradictedError, match="Redis knows"):
        check_history(mark)


def test_SA_13_an_empty_log_without_a_store_is_accepted(signing: None) -> None:
    assert present_mark() is None
    check_history(None)


def test_SA_13_a_mark_of_the_log_before_a_break_is_accepted(store: Store, now: datetime) -> None:
    """The jobs replace it soon. A process that starts in between must not stop."""
    mark = present_mark()
    assert mark is not None
    row = LogBreak.objects.create(
        name="20261129012233", previous="", size=7, root=b"r" * 32, signed=4, archived=0, at=now
    )
    check_history(mark)
    present = present_mark()
    assert present is not None
    assert present.name == row.name
    with pytest.raises(ContradictedError, match="does not know"):
        check_history(mark._replace(name="20261129012234"))


def test_SA_13_unknown_checkpoint_in_the_store_is_a_contradiction(store: Store) -> None:
    store.put_once(key_of(9), b"the database that was lost signed this")
    with pytest.raises(ContradictedError, match="external store"):
        check_history(None)


def test_SA_13_unknown_break_in_the_store_is_a_contradiction(store: Store, now: datetime) -> None:
    """The backup predates the break, and has every event that the previous log had signed."""
    row = LogBreak(
        name="20261129012233", previous="", size=7, root=b"r" * 32, signed=4, archived=0, at=now
    )
    store.put_once(key_of_break(row.name), break_record(row))
    with pytest.raises(ContradictedError, match="does not know"):
        check_history(None)


def test_SA_13_changed_store_raises_store_changed(
    store: Store, settings: Settings, tmp_path: Path
) -> None:
    """A changed prefix could hide a newer checkpoint."""
    # The copy is recorded, so the log knows its store.
    assert CheckpointCopy.objects.count() == 1
    for place in (f"file:{tmp_path / 'elsewhere'}", ""):
        settings.AUDIT_STORE = place
        with pytest.raises(StoreChangedError):
            check_history(None)


def test_SA_13_unavailable_store_raises_unavailable(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_uri: str) -> Store:
        raise TemporarilyUnavailableError

    monkeypatch.setattr(log_breaks, "store_at", away)
    with pytest.raises(TemporarilyUnavailableError):
        check_history(None)
