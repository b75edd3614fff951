"""A person can be forgotten: no text of theirs or of their agents stays anywhere, and the log proves as before."""

from datetime import datetime
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from approvals.tests import planted as words
from approvals.tests.cast import Person
from approvals.tests.planted import Planted, in_database, in_files, listed
from audit.archive.archiving import archive_audit
from audit.checkpoints import checkpoint_log
from audit.sequencer import sequence_until_empty
from audit.stores import store_at
from audit.verification import verify_log

pytestmark = pytest.mark.django_db


@pytest.fixture
def store(settings: Settings, tmp_path: Path) -> Path:
    """The log signs, and has a store outside."""
    settings.AUDIT_SIGNER, settings.AUDIT_KEYS = "audit.tests.signing.signer", "audit.tests.signing.keys"
    settings.AUDIT_STORE = f"file:{tmp_path}"
    return tmp_path


def archive(now: datetime, store: Path) -> None:
    sequence_until_empty(now=now)
    checkpoint_log(now=now)
    archive_audit(now=now, store=store_at(f"file:{store}"))


def test_no_text_of_a_person_goes_into_an_event_or_the_archive(
    admin: Person, store: Path, now: datetime
) -> None:
    words.live(Planted(now), admin)
    hits = in_database()
    # What must be found, or the search proves nothing.
    assert len(hits["audit_opening.value"]) > 30
    assert not [place for place in hits if place.startswith("audit_event")]
    archive(now, store)
    assert listed(in_files(store)) == ""
    assert verify_log().ok
