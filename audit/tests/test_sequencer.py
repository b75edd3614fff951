"""The sequencer numbers committed events once, in one chain, however many sequencers run."""

import uuid
from datetime import datetime

import pytest
from django.db import IntegrityError, transaction

from agentauth.protocol.identifiers import uuid7_text
from agentauth.protocol.log_hashes import EMPTY_LINK, leaf_hash, link
from audit.log import sequencer
from audit.log.event_encoding import entry_of
from audit.log.sequencer import sequence_pending, sequence_until_empty
from audit.models import Event, Head, Leaf, QueueEntry
from audit.tests.conftest import MakeEvent
from audit.tests.dying import dies_at
from audit.tests.tampering import as_table_owner, execute
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db


def _indexes() -> list[int]:
    return list(Leaf.objects.order_by("leaf_index").values_list("leaf_index", flat=True))


def test_empty_queue_gives_the_sequencer_no_work(now: datetime) -> None:
    assert sequence_pending(now=now) == 0
    assert sequence_until_empty(now=now) == 0


def test_leaves_are_numbered_and_linked_from_nothing(make_event: MakeEvent, now: datetime) -> None:
    for _ in range(5):
        make_event()
    assert sequence_pending(now=now) == 5
    previous = EMPTY_LINK
    for index, leaf in enumerate(Leaf.objects.select_related("event").order_by("leaf_index")):
        assert leaf.leaf_index == index
        assert bytes(leaf.leaf_hash) == leaf_hash(entry_of(leaf.event))
        previous = link(previous, bytes(leaf.leaf_hash))
        assert bytes(leaf.link) == previous
    head = Head.objects.get()
    assert (head.size, bytes(head.link), head.moved_at) == (5, previous, now)
    assert not QueueEntry.objects.exists()


def test_batches_continue_one_another(make_event: MakeEvent, now: datetime) -> None:
    for _ in range(7):
        make_event()
    assert sequence_pending(now=now, batch=3) == 3
    make_event()
    assert sequence_until_empty(now=now, batch=3) == 5
    assert _indexes() == list(range(8))
    assert Head.objects.get().size == 8


def test_events_are_not_touched_by_their_numbering(make_event: MakeEvent, now: datetime) -> None:
    event = make_event(personal={"name": "Alice"})
    before = Event.objects.filter(pk=event.pk).values().get()
    sequence_until_empty(now=now)
    assert Event.objects.filter(pk=event.pk).values().get() == before


def test_an_event_that_commits_late_with_a_small_id_is_still_numbered(
    make_event: MakeEvent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_event()
    sequence_until_empty(now=now)
    early = uuid.UUID(uuid7_text(1, bytes(10)))
    monkeypatch.setattr("audit.services.new_id", lambda: early)
    make_event()
    assert sequence_until_empty(now=now) == 1
    assert Leaf.objects.get(event_id=early).leaf_index == 1


def test_AU_11_the_sequencer_that_finds_the_head_moved_writes_nothing(
    make_event: MakeEvent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another sequencer commits between the read of the head and the swap; the stale view loses."""
    make_event()
    sequence_until_empty(now=now)
    make_event()
    stale = Head.objects.get()
    assert sequence_pending(now=now) == 1
    make_event()
    monkeypatch.setattr(sequencer, "_head", lambda: stale)
    assert sequence_pending(now=now) == 0
    monkeypatch.undo()
    assert _indexes() == [0, 1]
    assert sequence_pending(now=now) == 1
    assert _indexes() == [0, 1, 2]


def test_a_second_leaf_for_one_number_or_one_event_cannot_be_written(
    make_event: MakeEvent, now: datetime
) -> None:
    numbered = make_event()
    sequence_until_empty(now=now)
    other = make_event()
    fields = {"leaf_hash": bytes(32), "link": bytes(32)}
    for clash in ({"leaf_index": 0, "event": other}, {"leaf_index": 1, "event": numbered}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Leaf.objects.bulk_create([Leaf(**clash, **fields)])


def test_a_head_moved_back_makes_no_fork(make_event: MakeEvent, now: datetime) -> None:
    make_event()
    sequence_until_empty(now=now)
    make_event()
    with as_table_owner():
        execute("UPDATE audit_head SET size = 0, link = %s, peaks = %s", EMPTY_LINK, b"")
        with pytest.raises(IntegrityError), transaction.atomic():
            sequence_pending(now=now)
        assert _indexes() == [0]


def test_queue_order_follows_ids_within_a_batch(make_event: MakeEvent, now: datetime) -> None:
    ids = [make_event().id for _ in range(4)]
    sequence_until_empty(now=now)
    numbered = list(Leaf.objects.order_by("leaf_index").values_list("event_id", flat=True))
    assert numbered == sorted(ids, key=uuid.UUID.__int__)


@pytest.mark.parametrize(
    "place", ["sequence.after_head", "sequence.before_commit", "sequence.after_commit"]
)
def test_AU_21_a_sequencer_that_dies_anywhere_leaves_a_log_that_goes_on(
    make_event: MakeEvent, now: datetime, place: str
) -> None:
    """The crash is an exception here; tests/faults kills processes."""

    for _ in range(3):
        make_event()
    with dies_at(place, sequencer):
        sequence_pending(now=now)
    assert verify_log().ok
    sequence_until_empty(now=now)
    assert _indexes() == [0, 1, 2]
    assert verify_log().tree_size == 3
