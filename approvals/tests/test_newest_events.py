"""The newest events of one person, and their sums, are found without reading those of others."""

import uuid
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from approvals.views.activity_search import read_search
from approvals.views.paging import newest_events
from approvals.views.spending import count_days
from audit import kinds
from audit.models import Event
from audit.services import SYSTEM, record
from audit.tests.months import found
from audit.tests.tampering import execute
from registry.models import Human

pytestmark = [pytest.mark.django_db, pytest.mark.postgres]
MANY = 30_000
COPIES = """
INSERT INTO audit_event ({columns})
SELECT {values} FROM audit_event, generate_series(1, %s) n WHERE id = %s
"""
ROWS_READ = """
SELECT sum(idx_tup_fetch + seq_tup_read) FROM pg_stat_xact_user_tables
WHERE relname LIKE 'audit_event_%'
"""


def copy(event: Event, count: int) -> None:
    """Events that differ in their ids alone."""
    names = [str(field.column) for field in Event._meta.concrete_fields]
    values = ["overlay(id::text PLACING lpad(to_hex(n), 12, '0') FROM 25)::uuid", *names[1:]]
    assert names[0] == "id"
    execute(COPIES.format(columns=", ".join(names), values=", ".join(values)), count, event.pk)


def in_the_control_room(human: Any) -> Sequence[Event]:
    return list(newest_events("human_id", human.pk)[:20])


def in_the_activity(human: Any) -> Sequence[Event]:
    return read_search({}, human).page(None, 30).events


def in_the_payments(human: Any) -> Sequence[Event]:
    return read_search({"kind": "transact", "least": "5"}, human).page(None, 30).events


def on_the_spending_page(human: Any) -> Sequence[Any]:
    days, _ = count_days(human, timezone.now().date() - timedelta(days=90))
    return days


@pytest.mark.parametrize(
    "ask", [in_the_control_room, in_the_activity, in_the_payments, on_the_spending_page]
)
def test_a_prepared_list_of_a_person_without_events_reads_no_others(
    ask: Callable[[Any], Sequence[object]], now: datetime
) -> None:
    """Although every event that ANALYZE has seen belongs to one other person."""
    copy(record(kind=kinds.REQUEST_REFUSED, actor=SYSTEM, at=now, human_id=uuid.uuid4()), MANY)
    execute("ANALYZE audit_event")
    for name, value in (("plan_cache_mode", "force_generic_plan"), ("enable_seqscan", "off")):
        execute("SELECT set_config(%s, %s, true)", name, value)
    [before] = found(ROWS_READ)
    assert ask(Human(time_zone="UTC")) == []
    [after] = found(ROWS_READ)
    assert after - before < 100
