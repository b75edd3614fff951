"""Bulk recording: the same rows as one by one, all or none, each checked when it is made."""

import uuid
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from django.db import connection, transaction
from pytest_django import DjangoCaptureOnCommitCallbacks
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import EncodingError, TemporarilyUnavailableError
from agentauth.protocol.log_hashes import EMPTY_LINK
from audit import kinds
from audit.log import sequencer
from audit.log.sequencer import BATCH, sequence_until_empty
from audit.models import Event, Head, Leaf, QueueEntry
from audit.new_ids import new_id
from audit.services import Actor, NewEvent, check_data, find_recorded, record, record_many
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import as_table_owner, execute
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
AT = datetime(2026, 11, 25, 9, 30, 0, 123456, tzinfo=UTC)
# Text that breaks a careless writer of lines, and values that JSON keeps apart.
AWKWARD = {
    "text": 'a\\b\tc\nd\re"f\\N \\. é\u2028𝄞',
    "list": [1, None, True, {}],
    "big": 2**53 - 1,
    "": "",
}


def entry(**overrides: Any) -> NewEvent:
    values: dict[str, Any] = {
        "id": str(new_id()),
        "kind": kinds.DECISION_ALLOWED,
        "at": AT,
        "actor_kind": "service_provider",
        "actor_id": "0192f1c8-0000-7000-8000-000000000001",
        "request_id": "request-1",
        "outcome": "success",
        "data": {"action": None},
    }
    values |= overrides
    return NewEvent(**values | {"data": check_data(values["data"])})


def write(*entries: NewEvent) -> int:
    with transaction.atomic():
        return record_many(entries, now=AT)


def columns(pk: Any) -> dict[str, Any]:
    row: dict[str, Any] = {**Event.objects.filter(pk=pk).values().get()}
    assert len(bytes(row.pop("salt"))) == 32
    return {name: value for name, value in row.items() if name != "id"}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"data": AWKWARD, "token_jti": "a\\b\\N", "reason": "\\N", "outcome": "denied"},
        {
            name: str(uuid.uuid4())
            for name in ("agent_id", "human_id", "service_provider_id", "grant_id")
        },
        {"at": AT.replace(microsecond=0), "token_jti": "", "reason": ""},
    ],
)
def test_the_rows_are_those_of_record(more: dict[str, Any]) -> None:
    made = entry(**more)
    with transaction.atomic():
        one = record(
            kind=made.kind,
            actor=Actor(made.actor_kind, made.actor_id, made.request_id),
            at=made.at,
            outcome=made.outcome,
            reason=made.reason,
            agent_id=made.agent_id,
            human_id=made.human_id,
            service_provider_id=made.service_provider_id,
            grant_id=made.grant_id,
            token_jti=made.token_jti,
            data=made.data.value,
        )
        assert record_many([made], now=AT) == 1
    assert columns(made.id) == columns(one.pk)


def test_each_event_waits_for_its_number_and_gets_it(now: datetime, make_event: MakeEvent) -> None:
    make_event()
    assert write(*(entry(data=AWKWARD) for _ in range(30))) == 30
    assert QueueEntry.objects.count() == Event.objects.count() == 31
    assert len({bytes(salt) for salt in Event.objects.values_list("salt", flat=True)}) == 31
    assert sequence_until_empty(now=now) == 31
    assert verify_log().ok


def test_where_a_log_has_begun_they_are_numbered_with_their_writing(
    now: datetime, make_event: MakeEvent
) -> None:
    """The same bytes as the sequencer writes from the rows, in the order of their ids."""
    make_event()
    sequence_until_empty(now=now)
    waiting = make_event()
    all_ids = {
        name: str(uuid.uuid4())
        for name in ("agent_id", "human_id", "service_provider_id", "grant_id")
    }
    entries = [
        entry(),
        entry(data=AWKWARD, token_jti='a\\b\\N"', reason="\\N", actor_id='é𝄞"\\', outcome="denied"),
        entry(at=AT.replace(microsecond=0), token_jti="", reason="", actor_id="", request_id=""),
        entry(at=AT.astimezone(timezone(timedelta(hours=5, minutes=30))), **all_ids),
    ]
    assert write(*reversed(entries)) == 4
    assert list(QueueEntry.objects.values_list("event_id", flat=True)) == [waiting.pk]
    leaves = Leaf.objects.order_by("leaf_index").values_list("leaf_index", "event_id")[1:]
    ids = sorted(each.id for each in entries)
    assert [(index, str(pk)) for index, pk in leaves] == list(enumerate(ids, start=1))
    assert (Head.objects.get().size, Head.objects.get().moved_at) == (5, AT)
    assert sequence_until_empty(now=now) == 1
    verdict = verify_log()
    assert (verdict.ok, verdict.tree_size) == (True, 6)


def test_concurrent_sequencer_does_not_fork_the_log(
    now: datetime, make_event: MakeEvent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head that was read is no longer the end of the log, so the events wait."""
    make_event()
    sequence_until_empty(now=now)
    real = sequencer._grown

    def late(head: Head, hashed: Any) -> Any:
        Head.objects.update(size=head.size + 7)
        return real(head, hashed)

    monkeypatch.setattr(sequencer, "_grown", late)
    made = entry()
    write(made)
    assert [str(pk) for pk in QueueEntry.objects.values_list("event_id", flat=True)] == [made.id]
    assert Leaf.objects.count() == 1


def test_events_that_cannot_be_numbered_wait_and_are_not_lost(
    now: datetime, make_event: MakeEvent, caplog: pytest.LogCaptureFixture
) -> None:
    """The head was moved back: no fork, and the events are recorded all the same."""
    make_event()
    sequence_until_empty(now=now)
    made = entry()
    with as_table_owner():
        execute("UPDATE audit_head SET size = 0, link = %s, peaks = %s", EMPTY_LINK, b"")
        write(made)
        assert Leaf.objects.count() == 1
        assert [str(pk) for pk in QueueEntry.objects.values_list("event_id", flat=True)] == [
            made.id
        ]
        assert Head.objects.get().size == 0
    assert "are waiting" in caplog.text


def test_more_than_a_batch_of_either_is_written_and_numbered(now: datetime) -> None:
    """More than one statement's worth of values."""
    entries = [entry() for _ in range(BATCH + 100)]
    assert write(*entries) == len(entries)
    assert find_recorded([*(each.id for each in entries[:1000]), entry().id]) == {
        each.id for each in entries[:1000]
    }
    assert sequence_until_empty(now=now) == len(entries)
    assert Leaf.objects.count() == len(entries)


def test_of_none_nothing_is_written() -> None:
    assert write() == 0
    assert not Event.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_outside_a_transaction_it_is_refused() -> None:
    with pytest.raises(ValueError, match="transaction"):
        record_many([entry()], now=AT)
    assert not Event.objects.exists()


def test_an_id_that_is_there_fails_them_all() -> None:
    made = entry()
    write(made)
    for batch in ([entry(), made], [entry(), twice := entry(), twice]):
        with pytest.raises(TemporarilyUnavailableError):
            write(*batch)
    assert [str(pk) for pk in Event.objects.values_list("pk", flat=True)] == [made.id]


def test_AU_2_one_event_that_cannot_be_written_takes_the_others_with_it() -> None:
    if connection.vendor == "postgresql":
        broken = "FOR EACH ROW WHEN (NEW.reason = 'full') EXECUTE FUNCTION agentauth_refuse('full')"
    else:
        broken = "WHEN NEW.reason = 'full' BEGIN SELECT RAISE(ABORT, 'full'); END"
    execute(f"CREATE TRIGGER broken BEFORE INSERT ON audit_event {broken}")
    with pytest.raises(TemporarilyUnavailableError):
        write(entry(), entry(reason="full"))
    assert not Event.objects.exists()
    assert not QueueEntry.objects.exists()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        ({"kind": "audit.made.up"}, ValueError),
        ({"at": datetime(2026, 1, 1)}, ValueError),  # noqa: DTZ001 — the naive time is the point
        ({"outcome": "perhaps"}, ValueError),
        ({"id": "not-an-id"}, ValueError),
        ({"id": "0192F1C8-0000-7000-8000-000000000001"}, ValueError),
        ({"agent_id": "0192f1c8-0000-7000-8000-000000000001\n"}, ValueError),
        ({"human_id": ""}, ValueError),
        ({"service_provider_id": "x"}, ValueError),
        ({"grant_id": "{0192f1c8-0000-7000-8000-000000000001}"}, ValueError),
        ({"actor_kind": "x" * 33}, ValueError),
        ({"actor_kind": "a\tb"}, ValueError),
        ({"actor_id": "x" * 65}, ValueError),
        ({"request_id": "a\nb"}, ValueError),
        ({"reason": "\ud800"}, ValueError),
        ({"token_jti": "\0"}, ValueError),
        ({"token_jti": "x" * 65}, ValueError),
        ({"reason": "x" * 65}, ValueError),
        ({"request_id": "x" * 65}, ValueError),
        ({"token_jti": 0}, TypeError),
        ({"reason": []}, TypeError),
        ({"request_id": None}, TypeError),
        ({"agent_id": 0}, TypeError),
        ({"data": {"price": 1.5}}, EncodingError),
        ({"data": {"text": "\0"}}, EncodingError),
        ({"data": {"text": "\ud800"}}, EncodingError),
        ({"data": {"big": 2**53}}, EncodingError),
    ],
)
def test_an_entry_that_no_log_could_hold_is_not_made(
    more: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        entry(**more)


def test_what_is_committed_is_counted_by_kind(
    settings: Settings, django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks
) -> None:
    told: list[Any] = []
    settings.AUDIT_OBSERVER = f"{__name__}.observe"
    observe.told = told  # type: ignore[attr-defined]  # the setting names a function
    with django_capture_on_commit_callbacks(execute=True):
        write(entry(), entry(kind=kinds.DECISION_DENIED), entry())
        assert told == []
    assert sorted(told) == [(kinds.DECISION_ALLOWED, 2, None), (kinds.DECISION_DENIED, 1, None)]


def observe(*told: Any) -> None:
    observe.told.append(told)  # type: ignore[attr-defined]  # as above
