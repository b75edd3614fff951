"""Events waiting for a number are bounded: beyond that, only acts that end something proceed."""

import logging
from collections.abc import Callable
from datetime import datetime

import pytest
from django.db import transaction
from pytest_django import DjangoAssertNumQueries

from agentauth.protocol.errors import AgentAuthError, TemporarilyUnavailableError
from audit import kinds
from audit.log import load_shedding
from audit.log.refusal_counts import RECORDED_PER_MINUTE
from audit.models import Event, QueueEntry
from audit.services import Actor, record_many, record_refusal, seal_audit
from audit.tests.conftest import MakeEvent
from audit.tests.test_record_many import entry

pytestmark = pytest.mark.django_db
BOUND = 10


@pytest.fixture(autouse=True)
def _counted_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_shedding, "MAX_WAITING_EVENTS", BOUND)
    monkeypatch.setattr(load_shedding, "SAMPLED_SECONDS", 0.0)
    monkeypatch.setattr(load_shedding, "_backlog", load_shedding.Backlog())


@pytest.fixture
def full(make_event: MakeEvent) -> None:
    for _ in range(BOUND):
        make_event()


def test_RF_21_full_backlog_accepts_nothing_new_and_loses_nothing(
    full: None, make_event: MakeEvent, now: datetime
) -> None:
    for kind in (
        kinds.TOKEN_ISSUED,
        kinds.GRANT_APPROVED,
        kinds.GRANT_REQUESTED,
        kinds.DECISION_ALLOWED,
    ):
        with pytest.raises(TemporarilyUnavailableError):
            make_event(kind=kind)
    with pytest.raises(TemporarilyUnavailableError), transaction.atomic():
        record_many([entry()], now=now)
    with pytest.raises(TemporarilyUnavailableError):
        refuse(now)
    assert Event.objects.count() == QueueEntry.objects.count() == BOUND


def refuse(now: datetime) -> None:
    record_refusal(
        kind=kinds.REQUEST_REFUSED,
        actor=Actor("agent", "a"),
        at=now,
        error=AgentAuthError("no"),
        route="/x",
    )


def test_RF_21_what_ends_something_is_done_all_the_same(full: None, make_event: MakeEvent) -> None:
    for kind in (
        kinds.AGENT_REVOKED,
        kinds.GRANT_REVOKED,
        kinds.AGENT_SUSPENDED,
        kinds.HUMAN_SIGNED_IN,
    ):
        make_event(kind=kind)
    assert QueueEntry.objects.count() == BOUND + 4


def test_RF_21_numbering_goes_on_and_then_all_of_it_does(
    full: None, make_event: MakeEvent, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Suppressed floods are summarised first, which must not wait for the room it creates.
    for _ in range(RECORDED_PER_MINUTE + 2):
        with monkeypatch.context() as patch:
            patch.setattr(load_shedding, "MAX_WAITING_EVENTS", 1000)
            record_refusal(
                kind=kinds.REQUEST_REFUSED,
                actor=Actor("anonymous", ""),
                at=now.replace(year=now.year - 1),
                error=AgentAuthError("no"),
                route="/x",
            )
    assert seal_audit(now=now) == BOUND + RECORDED_PER_MINUTE + 1
    make_event(kind=kinds.TOKEN_ISSUED)


def test_RF_21_at_seven_tenths_it_is_said(
    make_event: MakeEvent, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(7):
        make_event()
    assert "are waiting for their number" not in caplog.text
    with caplog.at_level(logging.WARNING):
        make_event()
    assert "7 of at most 10 events are waiting for their number" in caplog.text


def test_a_process_counts_once_a_second(
    make_event: Callable[..., Event],
    monkeypatch: pytest.MonkeyPatch,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    monkeypatch.setattr(load_shedding, "SAMPLED_SECONDS", 60.0)
    counted = load_shedding.Backlog()
    with django_assert_num_queries(1):
        assert [counted.waiting() for _ in range(5)] == [0] * 5
