"""Refusals are recorded one by one; in a flood, those of anonymous callers, and batched ones of any
caller, are counted and then summarised."""

from datetime import UTC, datetime, timedelta

import pytest
from django.db import OperationalError

from agentauth.protocol.errors import (
    InvalidProofError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from audit import kinds
from audit.log.refusal_counts import RECORDED_PER_MINUTE, Batches, summarise_refusals
from audit.models import Event, RefusalCount
from audit.services import Actor, record_refusal, seal_audit
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
MINUTE = datetime(2026, 11, 25, 9, 30, tzinfo=UTC)
ANONYMOUS = Actor("anonymous", "", "request-1")
AGENT = Actor("agent", "0192f1c8-0000-7000-8000-000000000001", "request-1")
OVER = 5
ROUTES = ("POST v1/agents", "POST v1/tokens")


def _refuse(
    times: int,
    *,
    actor: Actor = ANONYMOUS,
    at: datetime = MINUTE,
    route: str = "POST v1/agents",
    stands_for: int | None = None,
) -> int:
    error = InvalidRequestError("No.")
    events = [
        record_refusal(
            kind=kinds.REQUEST_REFUSED,
            actor=actor,
            at=at,
            error=error,
            route=route,
            stands_for=stands_for,
        )
        for _ in range(times)
    ]
    return sum(event is not None for event in events)


def test_a_refusal_is_one_event_with_its_reason() -> None:
    error = InvalidProofError("The proof was used before.", reason="replayed")
    event = record_refusal(
        kind=kinds.REQUEST_REFUSED, actor=AGENT, at=MINUTE, error=error, route="POST v1/tokens"
    )
    assert event is not None
    assert (event.outcome, event.reason) == ("denied", "replayed")
    assert event.data == {"error": "invalid_dpop_proof", "route": "POST v1/tokens"}
    assert Event.objects.get() == event


def test_a_refusal_without_a_finer_reason_carries_its_code() -> None:
    _refuse(1)
    assert Event.objects.get().reason == "invalid_request"


def test_refusal_that_cannot_be_recorded_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(**_: object) -> None:
        raise OperationalError("disk full")

    monkeypatch.setattr("audit.services.record", failing)
    with pytest.raises(TemporarilyUnavailableError):
        _refuse(1)
    assert not RefusalCount.objects.exists()


def test_SA_6_an_anonymous_flood_leaves_ten_events_a_minute() -> None:
    assert _refuse(RECORDED_PER_MINUTE + OVER) == RECORDED_PER_MINUTE == 10
    assert Event.objects.count() == RECORDED_PER_MINUTE


def test_each_route_error_and_minute_has_its_own_allowance() -> None:
    _refuse(RECORDED_PER_MINUTE + OVER)
    assert _refuse(1, route="POST v1/tokens") == 1
    assert _refuse(1, at=MINUTE + timedelta(seconds=59)) == 0
    assert _refuse(1, at=MINUTE + timedelta(minutes=1)) == 1
    other = InvalidProofError("No.", reason="malformed")
    assert record_refusal(
        kind=kinds.REQUEST_REFUSED, actor=ANONYMOUS, at=MINUTE, error=other, route="POST v1/agents"
    )


def test_a_known_caller_s_refusals_are_all_recorded() -> None:
    assert _refuse(RECORDED_PER_MINUTE + OVER, actor=AGENT) == RECORDED_PER_MINUTE + OVER
    assert not RefusalCount.objects.exists()


def test_what_was_suppressed_becomes_one_event_once_the_minute_is_over() -> None:
    _refuse(RECORDED_PER_MINUTE + OVER)
    seal_audit(now=MINUTE + timedelta(seconds=59))
    assert not Event.objects.filter(kind=kinds.REFUSALS_SUPPRESSED).exists()
    for _ in range(2):
        seal_audit(now=MINUTE + timedelta(minutes=1))
    summary = Event.objects.get(kind=kinds.REFUSALS_SUPPRESSED)
    assert summary.data == {
        "route": "POST v1/agents",
        "error": "invalid_request",
        "minute": "2026-11-25T09:30:00Z",
        "count": OVER,
    }
    assert not RefusalCount.objects.exists()
    assert verify_log().tree_size == RECORDED_PER_MINUTE + 1


def test_a_refusal_counted_while_summarising_is_not_lost() -> None:
    """It was refused before the end of the minute and counted later, so its row stays."""
    for route in ROUTES:
        _refuse(RECORDED_PER_MINUTE + OVER, route=route)
    floods = summarise_refusals(before=MINUTE + timedelta(minutes=1))
    first = next(floods)
    _refuse(1, route=next(route for route in ROUTES if route != first.route))
    assert list(floods) == []
    (late,) = summarise_refusals(before=MINUTE + timedelta(minutes=1))
    assert (first.count, late.count) == (OVER, OVER + 1)


def test_a_minute_within_its_allowance_leaves_no_summary() -> None:
    _refuse(RECORDED_PER_MINUTE)
    seal_audit(now=MINUTE + timedelta(minutes=1))
    assert Event.objects.count() == RECORDED_PER_MINUTE
    assert not RefusalCount.objects.exists()


def test_routes_with_the_same_128_first_characters_share_a_count() -> None:
    route = "GET " + "x" * 500
    assert _refuse(RECORDED_PER_MINUTE, route=route) == RECORDED_PER_MINUTE
    assert _refuse(1, route=f"{route}y") == 0
    assert RefusalCount.objects.get().route == route[:128]


def test_a_key_is_written_at_once_then_once_a_second_with_what_waited() -> None:
    batches = Batches(seconds=1)
    assert [batches.add("a", now=now) for now in (5.0, 5.1, 5.9, 6.0, 6.5, 9.0)] == [
        1,
        0,
        0,
        3,
        0,
        2,
    ]
    assert batches.add("b", now=5.2) == 1


def test_a_held_refusal_is_counted_in_the_next_write() -> None:
    batches = Batches(seconds=1)
    assert not batches.hold("a", now=5.0)
    assert batches.add("a", now=5.0) == 1
    assert [batches.hold("a", now=now) for now in (5.1, 5.2, 6.0)] == [True, True, False]
    assert batches.add("a", now=6.0) == 3


def test_a_batch_forgets_keys_that_may_be_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("audit.log.refusal_counts._MAX_KEYS", 10)
    batches = Batches(seconds=1)
    for number in range(100):
        for later in (0, 0.1):
            batches.add(str(number), now=number + later)
    # The refusals that waited are then in no event; the metrics count them.
    assert len(batches._next_at) <= 11
    assert len(batches._waiting) <= 11


def test_refusals_that_stand_for_many_share_the_allowance() -> None:
    """Also those of a known caller."""
    assert _refuse(RECORDED_PER_MINUTE, actor=AGENT, stands_for=3) == RECORDED_PER_MINUTE
    assert {event.data["count"] for event in Event.objects.all()} == {3}
    assert _refuse(1, actor=AGENT, stands_for=7) == 0
    # A recorded event counts as one, whatever it stands for. So the summary will say 7.
    assert RefusalCount.objects.get().count == RECORDED_PER_MINUTE + 7
