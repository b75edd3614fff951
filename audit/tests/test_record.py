"""Recording: an event belongs to its transaction, hides personal data, and is written once."""

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import Error, IntegrityError, connection, transaction

from agentauth.protocol.errors import EncodingError, TemporarilyUnavailableError
from agentauth.protocol.log_hashes import entry_hash, field_commitment
from audit import kinds
from audit.db.prebuilt_sql import Statement
from audit.log.event_encoding import MAX_DATA_BYTES, entry_of, event_body
from audit.log.sequencer import sequence_until_empty
from audit.models import Event, Opening, QueueEntry
from audit.services import Actor, record
from audit.tests.conftest import MakeEvent
from audit.tests.event_openings import opened
from audit.tests.tampering import execute
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
AT = datetime(2026, 11, 25, 9, 30, 0, 123456, tzinfo=UTC)
AGENT = "0192f1c8-0000-7000-8000-000000000001"
ACTOR = Actor("system", "")
REFUSING = {
    "sqlite": (
        "CREATE TRIGGER broken BEFORE INSERT ON audit_event BEGIN SELECT RAISE(ABORT, 'full'); END"
    ),
    "postgresql": (
        "CREATE TRIGGER broken BEFORE INSERT ON audit_event FOR EACH ROW EXECUTE FUNCTION "
        "agentauth_refuse('full')"
    ),
}


def test_the_body_is_the_contract_s_json_with_absent_members_left_out(
    make_event: MakeEvent,
) -> None:
    event = make_event(at=AT, data={"amount": 3})
    assert event_body(Event.objects.get(pk=event.pk)) == {
        "id": str(event.id),
        "kind": kinds.REQUEST_REFUSED,
        "at": "2026-11-25T09:30:00.123456Z",
        "actor": {"kind": "agent", "id": AGENT},
        "outcome": "success",
        "request_id": "request-1",
        "data": {"amount": 3},
    }


def test_every_given_id_is_in_the_event_body(make_event: MakeEvent) -> None:
    names = ["agent_id", "human_id", "service_provider_id", "grant_id"]
    ids = {name: str(uuid.uuid4()) for name in names}
    event = make_event(**ids, token_jti="jti-1", outcome="denied", reason="expired")
    body = event_body(Event.objects.get(pk=event.pk))
    assert {name: body[name] for name in names} == ids
    assert (body["token_jti"], body["outcome"], body["reason"]) == ("jti-1", "denied", "expired")


def test_the_entry_is_the_salted_hash_of_what_the_database_gives_back(
    make_event: MakeEvent,
) -> None:
    event = make_event(data={"b": [1, {"ä": "é\u2028"}], "a": None, "big": 2**53 - 1})
    stored = Event.objects.get(pk=event.pk)
    assert entry_of(stored) == entry_hash(event_body(event), bytes(event.salt))
    assert len(bytes(stored.salt)) == 32


def broken_observer(*_told: object) -> None:
    raise RuntimeError("a counter is full")


@pytest.mark.django_db(transaction=True)
def test_an_observer_that_fails_undoes_nothing_and_is_a_line_in_the_log(
    make_event: MakeEvent, settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AUDIT_OBSERVER = f"{__name__}.broken_observer"
    with transaction.atomic():
        event = make_event()
    assert Event.objects.filter(pk=event.pk).exists()
    assert "a counter is full" in caplog.text


def test_ids_are_version_7_and_times_keep_their_microseconds(make_event: MakeEvent) -> None:
    event = Event.objects.get(pk=make_event(at=AT).pk)
    assert event.id.version == 7
    assert event.at == AT


def test_personal_member_is_stored_as_a_commitment_with_an_opening(make_event: MakeEvent) -> None:
    event = make_event(data={"count": 1}, personal={"name": "Alice", "address": {"street": "Elm"}})
    assert "Alice" not in str(Event.objects.get(pk=event.pk).data)
    for opening in Opening.objects.filter(event=event):
        committed = event.data[opening.member]
        assert committed == {"commitment": field_commitment(opening.value, bytes(opening.salt))}
    assert Opening.objects.filter(event=event).count() == 2


def test_equal_personal_values_have_unlike_commitments(make_event: MakeEvent) -> None:
    first, second = (make_event(personal={"name": "Alice"}) for _ in range(2))
    assert first.data != second.data


def test_erasure_deletes_an_opening_and_leaves_the_event(make_event: MakeEvent) -> None:
    event = make_event(personal={"name": "Alice"})
    Opening.objects.filter(event=event).delete()
    assert Event.objects.get(pk=event.pk).data == event.data


@pytest.mark.django_db(transaction=True)
def test_recording_outside_a_transaction_is_refused(now: datetime) -> None:
    with pytest.raises(ValueError, match="transaction"):
        record(kind=kinds.REQUEST_REFUSED, actor=Actor("system", ""), at=now)
    assert not Event.objects.exists()


def act(name: str) -> Statement:
    """An ordinary INSERT."""
    return Statement("INSERT INTO auth_group (name) VALUES (%s)", (name,))


def acts() -> int:
    return Group.objects.count()


@pytest.mark.django_db(transaction=True)
def test_single_statement_act_and_its_event_need_no_transaction(now: datetime) -> None:
    event = record(kind=kinds.REQUEST_REFUSED, actor=ACTOR, at=now, act=act("one"), data={"a": 1})
    assert acts() == 1
    assert Event.objects.get(pk=event.pk).data == {"a": 1}
    assert QueueEntry.objects.filter(event=event).exists()


@pytest.mark.django_db(transaction=True)
def test_AU_2_an_act_that_is_refused_has_no_event(now: datetime) -> None:
    record(kind=kinds.REQUEST_REFUSED, actor=ACTOR, at=now, act=act("one"))
    with pytest.raises(TemporarilyUnavailableError):
        record(kind=kinds.REQUEST_REFUSED, actor=ACTOR, at=now, act=act("one"))
    assert (acts(), Event.objects.count(), QueueEntry.objects.count()) == (1, 1, 1)


@pytest.mark.django_db(transaction=True)
def test_AU_2_single_statement_act_fails_if_its_event_is_not_written(now: datetime) -> None:
    execute(REFUSING[connection.vendor])
    try:
        with pytest.raises(TemporarilyUnavailableError):
            record(kind=kinds.REQUEST_REFUSED, actor=ACTOR, at=now, act=act("one"))
    finally:
        execute(
            "DROP TRIGGER broken" + (" ON audit_event" if connection.vendor == "postgresql" else "")
        )
    assert acts() == 0


def test_an_act_of_one_statement_has_openings_too(now: datetime) -> None:
    personal = {"name": "Alice", "description": 'A "text" \\ with\tü'}
    event = record(
        kind=kinds.REQUEST_REFUSED, actor=ACTOR, at=now, act=act("one"), personal=personal
    )
    assert acts() == 1
    assert opened(event) == personal
    sequence_until_empty(now=now)
    assert verify_log().ok


def test_a_rollback_takes_event_openings_and_queue_entry_with_it(make_event: MakeEvent) -> None:
    with transaction.atomic():
        make_event(personal={"name": "Alice"})
        transaction.set_rollback(True)
    assert [model.objects.count() for model in (Event, Opening, QueueEntry)] == [0, 0, 0]


def test_AU_2_an_event_that_cannot_be_written_takes_the_act_with_it(make_event: MakeEvent) -> None:
    earlier = make_event(personal={"name": "Alice"})
    with transaction.atomic():
        execute("SET CONSTRAINTS ALL IMMEDIATE") if connection.vendor == "postgresql" else None
        execute(REFUSING[connection.vendor])

        def act() -> None:
            with transaction.atomic():
                Opening.objects.filter(event=earlier).delete()
                make_event()

        with pytest.raises(TemporarilyUnavailableError):
            act()
        transaction.set_rollback(True)
    assert Opening.objects.filter(event=earlier).exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"kind": "audit.made.up"}, ValueError),
        ({"at": datetime(2026, 1, 1)}, ValueError),  # noqa: DTZ001 — the naive time is the point
        ({"data": {"name": 1}, "personal": {"name": "Alice"}}, ValueError),
        ({"data": {"price": 1.5}}, EncodingError),
        ({"data": {"text": "\0"}}, EncodingError),
        ({"data": {"text": "x" * MAX_DATA_BYTES}}, EncodingError),
        ({"personal": {"text": "\ud800"}}, EncodingError),
        ({"outcome": "perhaps"}, TemporarilyUnavailableError),
        ({"agent_id": "not-an-id"}, ValueError),
    ],
)
def test_an_event_that_could_not_be_proved_later_is_refused(
    make_event: MakeEvent, arguments: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        make_event(**arguments)
    assert not Event.objects.exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE audit_event SET reason = 'x'",
        "DELETE FROM audit_event",
        "UPDATE audit_opening SET member = 'x'",
        "UPDATE audit_leaf SET leaf_index = 7",
        "DELETE FROM audit_leaf",
    ],
)
def test_rows_of_the_log_never_change(make_event: MakeEvent, now: datetime, statement: str) -> None:
    from audit.log.sequencer import sequence_until_empty

    make_event(personal={"name": "Alice"})
    sequence_until_empty(now=now)
    with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
        execute(statement)


@pytest.mark.parametrize("table", ["audit_event", "audit_leaf", "audit_opening"])
def test_rows_of_the_log_are_not_replaced_or_emptied(
    make_event: MakeEvent, now: datetime, table: str
) -> None:
    from audit.log.sequencer import sequence_until_empty

    make_event(personal={"name": "Alice"})
    sequence_until_empty(now=now)
    if connection.vendor == "postgresql":
        execute("SET CONSTRAINTS ALL IMMEDIATE")
        statement = f"TRUNCATE {table} CASCADE"
    else:
        statement = f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}"  # noqa: S608 — one of ours
    with pytest.raises(Error, match="append-only"), transaction.atomic():
        execute(statement)
