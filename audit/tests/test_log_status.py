"""The log's status at a glance: it claims no more than was checked, and shows contradictions."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from django.db import transaction
from pytest_django import DjangoAssertNumQueries
from pytest_django.fixtures import Settings

from audit.checkpoints.signing import checkpoint_log
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import inclusion_proof, inclusion_proofs
from audit.models import Checkpoint, Event, Head, Leaf, Node, QueueEntry
from audit.services import record_many
from audit.tests.conftest import MakeEvent
from audit.tests.signing import sign_with
from audit.tests.tampering import as_table_owner, execute
from audit.tests.test_record_many import entry
from audit.verify.log_status import (
    LATE,
    EventPosition,
    EventStatus,
    LogStatus,
    event_positions,
    read_log_status,
)

pytestmark = pytest.mark.django_db
Tamper = Callable[[], object]


@pytest.fixture(autouse=True)
def _keys(settings: Settings) -> None:
    sign_with(settings)


@pytest.fixture
def log(now: datetime, make_event: MakeEvent) -> list[Event]:
    """Seven events, five of them signed."""
    for count in (5, 2):
        for _ in range(count):
            make_event()
        sequence_until_empty(now=now)
        checkpoint_log(now=now)
    return list(Event.objects.order_by("leaf__leaf_index"))


def test_empty_log_is_not_a_contradiction(now: datetime) -> None:
    assert read_log_status(now=now) == LogStatus(0, None, "", timedelta(0))


def test_a_log_that_fits_says_what_is_signed(log: list[Event], now: datetime) -> None:
    found = read_log_status(now=now + timedelta(seconds=30))
    assert (found.size, found.signed, found.problem, found.is_late) == (7, 5, "", False)
    assert found.unsigned_for == timedelta(seconds=30)
    assert read_log_status(now=now + LATE + timedelta(seconds=1)).is_late
    checkpoint_log(now=now + timedelta(hours=1))
    found = read_log_status(now=now + timedelta(hours=9))
    assert (found.signed, found.unsigned_for, found.is_late) == (7, timedelta(0), False)


def test_after_a_silence_the_first_news_is_not_late(
    log: list[Event], now: datetime, make_event: MakeEvent
) -> None:
    checkpoint_log(now=now + timedelta(hours=1))
    later = now + timedelta(hours=9)
    make_event(at=later)
    sequence_until_empty(now=later)
    assert read_log_status(now=later).unsigned_for == timedelta(0)


def _forget_the_head() -> None:
    execute("DELETE FROM audit_head")


@pytest.mark.parametrize(
    "tamper",
    [
        lambda: Leaf.objects.filter(leaf_index=2).update(leaf_hash=bytes(32)),
        lambda: Leaf.objects.filter(leaf_index=6).update(leaf_hash=bytes(32)),
        lambda: execute("DELETE FROM audit_leaf WHERE leaf_index = 4"),
        lambda: Head.objects.update(size=3),
        lambda: Head.objects.update(peaks=bytes(96)),
        lambda: Head.objects.update(peaks=b""),
        lambda: Checkpoint.objects.update(root=bytes(32)),
        lambda: Checkpoint.objects.update(note="x"),
        lambda: execute("UPDATE audit_checkpoint SET size = 6"),
        _forget_the_head,
    ],
)
def test_what_does_not_fit_is_said(log: list[Event], now: datetime, tamper: Tamper) -> None:
    with as_table_owner():
        tamper()
        assert read_log_status(now=now).problem


def test_a_checkpoint_that_another_key_signed_does_not_count(
    log: list[Event], now: datetime, settings: Settings
) -> None:
    settings.AUDIT_KEYS = "audit.tests.test_log_status.other_keys"
    assert "was changed" in read_log_status(now=now).problem


def other_keys(*, purpose: str, now: datetime) -> dict[str, object]:
    from agentauth.protocol.keys import PrivateKey

    return {purpose: PrivateKey.generate().public}


def test_each_event_is_found_where_it_is(
    log: list[Event], now: datetime, make_event: MakeEvent
) -> None:
    events = [*log, make_event()]
    found = event_positions(events, read_log_status(now=now).checkpoint)
    assert [found[event.pk] for event in events] == [
        *(EventPosition(EventStatus.PROVED, number) for number in range(5)),
        *(EventPosition(EventStatus.NUMBERED, number) for number in (5, 6)),
        EventPosition(EventStatus.WAITING, None),
    ]
    assert {position.status for position in event_positions(log, None).values()} == {
        EventStatus.NUMBERED
    }


def test_an_event_that_was_changed_is_named(log: list[Event], now: datetime) -> None:
    checkpoint = read_log_status(now=now).checkpoint
    with as_table_owner():
        Event.objects.filter(pk=log[1].pk).update(reason="another")
        Event.objects.filter(pk=log[6].pk).update(kind="another")
        found = event_positions([Event.objects.get(pk=event.pk) for event in log], checkpoint)
    wrong = [event for event in log if found[event.pk].status == EventStatus.WRONG]
    assert wrong == [log[1], log[6]]
    assert {found[event.pk].status for event in log[2:5]} == {EventStatus.PROVED}


def test_an_event_that_nothing_accounts_for_is_wrong(
    log: list[Event], make_event: MakeEvent
) -> None:
    event = make_event()
    with as_table_owner():
        QueueEntry.objects.filter(pk=event.pk).delete()
        assert event_positions([event], None) == {event.pk: EventPosition(EventStatus.WRONG, None)}


@pytest.mark.parametrize(
    "tamper",
    [
        lambda: Leaf.objects.filter(leaf_index=2).update(leaf_hash=bytes(32)),
        lambda: execute("DELETE FROM audit_leaf WHERE leaf_index = 2"),
    ],
)
def test_where_another_leaf_is_wrong_nothing_is_proved(
    log: list[Event], now: datetime, tamper: Tamper
) -> None:
    checkpoint = read_log_status(now=now).checkpoint
    with as_table_owner():
        tamper()
        found = event_positions(log[:2], checkpoint)
    assert {position.status for position in found.values()} == {EventStatus.UNPROVED}


@pytest.fixture
def long_log(now: datetime) -> int:
    """A little more than three tiles, signed."""
    for _ in range(8):
        with transaction.atomic():
            record_many([entry() for _ in range(100)], now=now)
    sequence_until_empty(now=now)
    assert checkpoint_log(now=now) == 800
    return 800


def test_it_takes_a_handful_of_queries(
    long_log: int, now: datetime, django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(7):
        checkpoint = read_log_status(now=now).checkpoint
    events = list(Event.objects.filter(leaf__leaf_index__in=range(5, 800, 50)))
    with django_assert_max_num_queries(4):
        found = event_positions(events, checkpoint)
    assert {position.status for position in found.values()} == {EventStatus.PROVED}


def test_a_node_that_was_changed_is_noticed(long_log: int, now: datetime) -> None:
    with as_table_owner():
        Node.objects.filter(index=1).update(hash=bytes(32))
        assert read_log_status(now=now).problem


def test_proofs_of_several_leaves_are_those_of_each(long_log: int) -> None:
    indices = (0, 3, 255, 256, 600, 799)
    assert inclusion_proofs(indices, 800) == {
        index: inclusion_proof(index, 800) for index in indices
    }
    assert inclusion_proofs((), 800) == {}


def test_an_event_of_another_database_has_no_place(now: datetime) -> None:
    stranger = Event(id=uuid4(), kind="x", at=now, data={}, salt=bytes(32))
    assert event_positions([stranger], None)[stranger.pk].status == EventStatus.WRONG
