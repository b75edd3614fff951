"""Metrics about the log: how far it is signed, copied, witnessed, archived, and consistent."""

import re
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.db import OperationalError, transaction
from django.test import Client
from django.utils import timezone
from pytest_django.fixtures import Settings

from agentauth.observability import database_metrics
from audit import kinds
from audit.checkpoints.signing import EVERY, checkpoint_log
from audit.models import Checkpoint, Cosignature, Leaf, Segment
from audit.services import SYSTEM, record, seal_audit
from audit.tests.fake_witness import VERIFIER
from audit.tests.tampering import as_table_owner
from kms.models import Key
from kms.services import disable_key, ensure_key

pytestmark = pytest.mark.django_db


def page() -> str:
    return Client().get("/metrics").content.decode()


def sample(name: str) -> float | None:
    found = re.search(rf"^agentauth_audit_{re.escape(name)} (\S+)$", page(), re.MULTILINE)
    return float(found[1]) if found else None


@pytest.fixture
def log(settings: Settings, tmp_path: Path, now: datetime) -> None:
    """Three events and those of a new key; their checkpoint is in the store."""
    settings.AUDIT_STORE = f"file:{tmp_path / 'log'}?x=y"
    ensure_key(purpose="audit", actor=SYSTEM, now=now)
    more(3, now)
    checkpoint_log(now=now)


def more(count: int, now: datetime) -> None:
    with transaction.atomic():
        for _ in range(count):
            record(kind=kinds.HUMAN_CHANGED, actor=SYSTEM, at=now)
    seal_audit(now=now)


def test_how_far_the_log_is_signed_copied_witnessed_and_archived(
    log: None, settings: Settings, now: datetime
) -> None:
    signed = Checkpoint.objects.get()
    size = signed.size
    name = VERIFIER.name
    settings.AUDIT_WITNESSES = [f"{VERIFIER.vkey} https://witness.example"]
    assert sample(f'cosigned_leaves{{witness="{name}"}}') == 0
    Cosignature.objects.create(checkpoint=signed, witness=name, line="x", at=now)
    Segment.objects.create(first=0, end=2, manifest_sha256=bytes(32), at=now)
    more(2, now)
    assert (sample("leaves"), sample("signed_leaves"), sample("copied_leaves")) == (
        size + 2,
        size,
        size,
    )
    assert (sample("archived_leaves"), sample("consistent")) == (2, 1)
    assert sample(f'cosigned_leaves{{witness="{name}"}}') == size
    settings.AUDIT_WITNESSES = []
    assert sample(f'cosigned_leaves{{witness="{name}"}}') is None
    settings.AUDIT_STORE = ""
    assert sample("copied_leaves") is None


def test_how_long_what_is_new_waits_for_a_signature(log: None) -> None:
    assert sample("checkpoint_age_seconds") == 0
    now = timezone.now()
    Checkpoint.objects.get()
    more(1, now - timedelta(seconds=40))
    assert 0 <= (sample("checkpoint_age_seconds") or -1) < 60
    checkpoint_log(now=now + EVERY)
    assert sample("checkpoint_age_seconds") == 0


def test_a_log_that_does_not_fit_is_not_consistent(log: None) -> None:
    with as_table_owner():
        Leaf.objects.filter(leaf_index=1).update(leaf_hash=bytes(32))
        assert sample("consistent") == 0


def test_SA_8_a_disabled_key_of_the_log_makes_it_no_less_consistent(log: None) -> None:
    disable_key(
        kid=Key.objects.get(purpose="audit").kid, actor=SYSTEM, now=timezone.now(), even_last=True
    )
    assert sample("consistent") == 1


def test_an_empty_log_is_consistent(db: None) -> None:
    assert (sample("leaves"), sample("signed_leaves"), sample("consistent")) == (0, 0, 1)


def test_a_role_that_may_not_read_the_log_gives_everything_else(
    log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_metrics, "may_read_log", lambda: False)
    assert "audit_leaves" not in page()
    assert sample("queue_events") == 0


def test_where_the_log_cannot_be_asked_the_rest_is_given(
    log: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*, now: datetime) -> None:
        raise OperationalError(str(now))

    monkeypatch.setattr(database_metrics, "read_log_status", away)
    assert "audit_leaves" not in page()
    assert sample("queue_events") == 0


def test_RF_21_the_page_says_how_many_may_wait(db: None) -> None:
    assert sample("queue_bound") == 100_000
