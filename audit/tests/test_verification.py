"""verify_audit accepts a whole log and locates every change by the tables' owner."""

import base64
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError
from django.db import OperationalError

from agentauth.protocol.log_hashes import CompactTree, leaf_hash, link
from audit.log.event_encoding import entry_of
from audit.log.sequencer import sequence_until_empty
from audit.models import Checkpoint, Event, Head, Leaf, Node, Opening, QueueEntry
from audit.tests.command_output import json_of, output_of
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import as_table_owner, execute
from audit.verify import entry_checks
from audit.verify.verification import Verdict, verify_log

pytestmark = pytest.mark.django_db
SIZE = 7


@pytest.fixture
def log(make_event: MakeEvent, now: datetime) -> list[Event]:
    """Seven numbered events with all columns filled, and one without a number."""
    ids = {
        name: uuid.uuid4() for name in ("agent_id", "human_id", "service_provider_id", "grant_id")
    }
    for number in range(SIZE):
        make_event(
            **ids,
            token_jti=f"jti-{number}",
            reason="expired",
            data={"n": number},
            personal={"name": "Alice"},
        )
    sequence_until_empty(now=now)
    make_event(data={"n": SIZE})
    return [leaf.event for leaf in Leaf.objects.select_related("event").order_by("leaf_index")]


def test_a_whole_log_passes_and_tells_its_root(log: list[Event]) -> None:
    tree = CompactTree()
    for event in log:
        tree.append(leaf_hash(entry_of(event)))
    for batch in (1, 3, SIZE, 500):
        verdict = verify_log(batch=batch)
        assert (verdict.ok, verdict.tree_size, verdict.first_bad) == (True, SIZE, None)
        assert verdict.root_hash == verify_log().root_hash


def test_an_empty_log_passes() -> None:
    assert verify_log() == Verdict(
        ok=True,
        tree_size=0,
        root_hash="47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=",
        first_bad=None,
        problem="",
    )


def test_an_opening_that_no_event_says_was_erased_is_missing(log: list[Event]) -> None:
    event = Event.objects.get(pk=Opening.objects.order_by("id").values_list("event", flat=True)[0])
    Opening.objects.filter(event=event).delete()
    verdict = verify_log()
    assert (verdict.ok, verdict.first_bad) == (False, str(event.pk))
    assert "no event says that it was erased" in verdict.problem


OTHER: dict[str, Any] = {
    "kind": "audit.request.forgiven",
    "at": datetime(2020, 1, 1, tzinfo=UTC),
    "actor_kind": "human",
    "actor_id": "somebody else",
    "agent_id": uuid.UUID(int=1),
    "human_id": uuid.UUID(int=2),
    "service_provider_id": uuid.UUID(int=3),
    "grant_id": uuid.UUID(int=4),
    "token_jti": "another",
    "outcome": "denied",
    "reason": "another",
    "request_id": "another",
    "data": {"n": 3, "more": True},
    "salt": bytes(32),
}
COLUMNS = [field.column for field in Event._meta.concrete_fields if not field.primary_key]
NULLABLE = [field.column for field in Event._meta.concrete_fields if field.null]


def test_the_columns_below_are_all_the_columns_there_are() -> None:
    assert set(OTHER) == set(COLUMNS)


@pytest.mark.parametrize("column", COLUMNS)
def test_AU_3_a_changed_column_of_an_event_is_named(log: list[Event], column: str) -> None:
    with as_table_owner():
        Event.objects.filter(pk=log[3].pk).update(**{column: OTHER[column]})
        verdict = verify_log(batch=2)
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, str(log[3].id), 3)
    assert "changed" in verdict.problem


@pytest.mark.parametrize("column", NULLABLE)
def test_AU_3_an_emptied_column_of_an_event_is_named(log: list[Event], column: str) -> None:
    with as_table_owner():
        Event.objects.filter(pk=log[0].pk).update(**{column: None})
        assert verify_log().first_bad == str(log[0].id)


def test_AU_3_one_microsecond_and_one_type_are_changes(log: list[Event]) -> None:
    for change in (
        {"at": log[2].at + timedelta(microseconds=1)},
        {"data": log[2].data | {"n": "2"}},
    ):
        with as_table_owner():
            Event.objects.filter(pk=log[2].pk).update(**change)
            assert verify_log().first_bad == str(log[2].id)


def test_AU_3_a_changed_id_of_an_event_is_named(log: list[Event]) -> None:
    with as_table_owner():
        Event.objects.filter(pk=log[3].pk).update(id=uuid.UUID(int=7))
        assert verify_log().first_bad == str(log[3].id)


def _delete_event(log: list[Event]) -> None:
    execute("DELETE FROM audit_event WHERE token_jti = %s", log[4].token_jti)


def _delete_leaf(log: list[Event]) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index = 4")


def _delete_leaf_and_close_the_gap(log: list[Event]) -> None:
    _delete_leaf(log)
    for index in (5, 6):
        execute("UPDATE audit_leaf SET leaf_index = %s WHERE leaf_index = %s", index - 1, index)
    execute("UPDATE audit_head SET size = 6")


def _delete_tail(log: list[Event]) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index >= 5")


def _delete_tail_and_move_the_head(log: list[Event]) -> None:
    _delete_tail(log)
    tree = CompactTree()
    for leaf in Leaf.objects.order_by("leaf_index"):
        tree.append(bytes(leaf.leaf_hash))
    Head.objects.update(
        size=5, link=Leaf.objects.get(leaf_index=4).link, peaks=b"".join(tree.peaks)
    )


def _delete_first_leaf(log: list[Event]) -> None:
    execute("DELETE FROM audit_leaf WHERE leaf_index = 0")


def _swap_two_leaves(log: list[Event]) -> None:
    for before, after in ((2, 99), (3, 2), (99, 3)):
        execute("UPDATE audit_leaf SET leaf_index = %s WHERE leaf_index = %s", after, before)


def _swap_two_events(log: list[Event]) -> None:
    spare = uuid.UUID(int=9)
    for before, after in ((log[2].id, spare), (log[3].id, log[2].id), (spare, log[3].id)):
        Leaf.objects.filter(event_id=before).update(event_id=after)


def _insert_leaf_at_the_end(log: list[Event]) -> None:
    waiting = QueueEntry.objects.select_related("event").get()
    _add_leaf(SIZE, waiting.event)


def _insert_leaf_in_the_middle(log: list[Event]) -> None:
    waiting = QueueEntry.objects.select_related("event").get()
    for index in range(SIZE - 1, 3, -1):
        execute("UPDATE audit_leaf SET leaf_index = %s WHERE leaf_index = %s", index + 1, index)
    _add_leaf(4, waiting.event)
    execute("UPDATE audit_head SET size = 8")
    waiting.delete()


def _add_leaf(index: int, event: Event) -> None:
    previous = bytes(Leaf.objects.get(leaf_index=index - 1).link)
    entry = entry_of(event)
    hashed = leaf_hash(entry)
    Leaf.objects.create(
        leaf_index=index,
        event=event,
        entry=entry,
        leaf_hash=hashed,
        link=link(previous, hashed),
        agent_id=event.agent_id,
        human_id=event.human_id,
        kind=event.kind,
    )


def _change_leaf_hash(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(leaf_hash=bytes(32))


def _shorten_leaf_hash(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(leaf_hash=b"short")


def _change_link(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(link=bytes(32))


def _change_head_link(log: list[Event]) -> None:
    Head.objects.update(link=bytes(32))


def _move_head_forward(log: list[Event]) -> None:
    Head.objects.update(size=SIZE + 1)


def _delete_head(log: list[Event]) -> None:
    Head.objects.all().delete()


def _rewrite_an_event_with_its_leaf(log: list[Event]) -> None:
    event = log[3]
    event.reason = "forgiven"
    Event.objects.filter(pk=event.pk).update(reason=event.reason)
    entry = entry_of(event)
    hashed = leaf_hash(entry)
    previous = bytes(Leaf.objects.get(leaf_index=2).link)
    Leaf.objects.filter(leaf_index=3).update(
        entry=entry, leaf_hash=hashed, link=link(previous, hashed)
    )


def _change_entry(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(entry=bytes(32))


def _give_a_leaf_to_another_agent(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(agent_id=uuid.UUID(int=1))


def _take_a_leaf_from_its_human(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(human_id=None)


def _change_the_kind_of_a_leaf(log: list[Event]) -> None:
    Leaf.objects.filter(leaf_index=3).update(kind="kms.key.published")


def _change_head_peaks(log: list[Event]) -> None:
    Head.objects.update(peaks=bytes(len(Head.objects.get().peaks)))


def _insert_node(log: list[Event]) -> None:
    Node.objects.create(level=1, index=0, hash=bytes(32))


# A change, and where it is found: a leaf index, or ("event", index) for that leaf's event.
TAMPERINGS: list[tuple[Callable[[list[Event]], None], Any]] = [
    (_delete_event, ("event", 4)),
    (_change_entry, 3),
    (_give_a_leaf_to_another_agent, 3),
    (_take_a_leaf_from_its_human, 3),
    (_change_the_kind_of_a_leaf, 3),
    (_change_head_peaks, SIZE - 1),
    (_insert_node, 0),
    (_delete_leaf, 4),
    (_delete_leaf_and_close_the_gap, 4),
    (_delete_tail, 5),
    (_delete_tail_and_move_the_head, ("event", 5)),
    (_delete_first_leaf, 0),
    (_swap_two_leaves, 2),
    (_swap_two_events, ("event", 3)),
    (_insert_leaf_at_the_end, 7),
    (_insert_leaf_in_the_middle, 5),
    (_change_leaf_hash, 3),
    (_shorten_leaf_hash, 3),
    (_change_link, 3),
    (_change_head_link, 6),
    (_move_head_forward, 7),
    (_delete_head, 0),
    (_rewrite_an_event_with_its_leaf, 4),
]


@pytest.mark.parametrize(
    ("tamper", "place"), TAMPERINGS, ids=[tamper.__name__ for tamper, _ in TAMPERINGS]
)
def test_AU_4_what_was_done_to_the_rows_is_found_at_its_place(
    log: list[Event], tamper: Callable[[list[Event]], None], place: Any
) -> None:
    expected = str(log[place[1]].id) if isinstance(place, tuple) else place
    with as_table_owner():
        tamper(log)
        verdicts = [verify_log(batch=batch) for batch in (2, 500)]
    assert [(verdict.ok, verdict.first_bad) for verdict in verdicts] == [(False, expected)] * 2
    assert verify_log().ok


def test_an_event_with_neither_leaf_nor_queue_entry_is_named(log: list[Event]) -> None:
    waiting = QueueEntry.objects.get()
    with as_table_owner():
        execute("DELETE FROM audit_queueentry")
        verdict = verify_log()
    assert verdict.first_bad == str(waiting.event_id)
    assert "neither a leaf nor a queue entry" in verdict.problem


def test_an_event_put_in_behind_the_services_is_named(log: list[Event]) -> None:
    fields = {
        field.attname: getattr(log[0], field.attname) for field in Event._meta.concrete_fields
    }
    forged = Event(**(fields | {"id": uuid.uuid4()}))
    with as_table_owner():
        forged.save(force_insert=True)
        assert verify_log().first_bad == str(forged.id)


def test_a_waiting_event_that_is_deleted_is_named(log: list[Event]) -> None:
    waiting = QueueEntry.objects.get()
    with as_table_owner():
        execute("DELETE FROM audit_event WHERE agent_id IS NULL")
        assert verify_log().first_bad == str(waiting.event_id)


def test_queued_event_whose_data_is_not_an_object_is_reported(
    log: list[Event], make_event: MakeEvent
) -> None:
    event = make_event(personal={"name": "Bob"})
    with as_table_owner():
        Event.objects.filter(pk=event.pk).update(data=[])
        assert verify_log().first_bad == str(event.id)


@pytest.mark.parametrize("change", [{"value": "Mallory"}, {"salt": bytes(32)}, {"member": "email"}])
def test_an_opening_that_contradicts_its_commitment_is_named(
    log: list[Event], change: dict[str, Any]
) -> None:
    with as_table_owner():
        Opening.objects.filter(event=log[5]).update(**change)
        assert verify_log(batch=2).first_bad == str(log[5].id)


def test_an_opening_of_a_waiting_event_is_checked_too(
    log: list[Event], make_event: MakeEvent
) -> None:
    event = make_event(personal={"name": "Bob"})
    with as_table_owner():
        Opening.objects.filter(event=event).update(value="Mallory")
        assert verify_log().first_bad == str(event.id)


@pytest.mark.parametrize(("column", "garbage"), [("at", "yesterday"), ("grant_id", "not an id")])
def test_a_value_that_cannot_be_read_is_named_and_not_a_crash(
    log: list[Event], column: str, garbage: str
) -> None:
    from django.db import connection

    if connection.vendor == "postgresql":
        return  # its column types hold no such value
    with as_table_owner():
        # The column names are the test's own.
        sql = f"UPDATE audit_event SET {column} = %s WHERE token_jti = %s"  # noqa: S608
        execute(sql, garbage, log[3].token_jti)
        assert verify_log().first_bad in {3, str(log[3].id)}


def test_a_row_that_cannot_be_read_is_named(
    log: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On any database: the columns of a later Django or driver may hold what these do not."""
    read = entry_checks._join_events

    def garbled(start: int, end: int) -> list[tuple[Leaf, Event | None]]:
        if start <= 3 < end:
            raise ValueError("not a timestamp")
        return read(start, end)

    monkeypatch.setattr(entry_checks, "_join_events", garbled)
    verdict = verify_log()
    assert (verdict.ok, verdict.first_bad, verdict.tree_size) == (False, 3, 3)
    assert "cannot be read" in verdict.problem


def test_an_unavailable_database_is_not_taken_for_tampering(
    log: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_start: int, _end: int) -> list[tuple[Leaf, Event | None]]:
        raise OperationalError("the connection is lost")

    monkeypatch.setattr(entry_checks, "_join_events", away)
    with pytest.raises(OperationalError):
        verify_log()


def test_openings_of_waiting_events_that_match_pass(
    log: list[Event], make_event: MakeEvent
) -> None:
    for name in ("Bob", "Carol", "Dan"):
        make_event(personal={"name": name})
    assert verify_log(batch=2).ok


def test_the_command_prints_one_json_object_and_exits_0(log: list[Event]) -> None:
    answer = json_of("verify_audit")
    assert (answer["ok"], answer["tree_size"], answer["first_bad"]) == (True, SIZE, None)
    assert answer["root_hash"] == verify_log().root_hash


@pytest.mark.parametrize("arguments", [[], ["--json"]])
def test_the_command_exits_1_and_names_the_place(log: list[Event], arguments: list[str]) -> None:
    with as_table_owner():
        Event.objects.filter(pk=log[3].pk).update(reason="forgiven")
        assert str(log[3].id) in output_of("verify_audit", *arguments, code=1)


def test_seal_audit_numbers_what_waits_and_signs_to_the_end(
    signing: None, log: list[Event], make_event: MakeEvent
) -> None:
    """Even if the last signature is less than a minute old, or nothing is new."""
    for numbered, size in ((1, SIZE + 1), (1, SIZE + 2), (0, SIZE + 2)):
        if QueueEntry.objects.count() < numbered:
            make_event()
        assert json_of("seal_audit") == {"numbered": numbered, "signed_size": size}
        newest = Checkpoint.objects.latest("size")
        assert (newest.size, bytes(newest.root)) == (size, base64.b64decode(verify_log().root_hash))


def test_seal_audit_that_cannot_sign_says_so_and_has_numbered(log: list[Event]) -> None:
    with pytest.raises(CommandError, match="Numbered 1 events, but the log is not signed"):
        output_of("seal_audit")
    assert verify_log().tree_size == SIZE + 1
