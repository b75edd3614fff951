"""A host whose clock differs from the database's changes nothing and records one event."""

import platform
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit import kinds
from audit.models import Event
from registry.models import Agent
from registry.tests.cast import AgentClient
from verifier.services import host_clock_check, replay_cache_lease, replay_epochs
from verifier.services.host_clock_check import CLOCK
from verifier.tests.epoch_moves import Passing

pytestmark = pytest.mark.django_db


def told() -> list[dict[str, Any]]:
    return [event.data for event in Event.objects.filter(kind=kinds.CLOCK_OFF).order_by("at")]


@pytest.mark.parametrize(("ahead", "right"), [(6, False), (5, True), (-5, True), (-6, False)])
def test_host_with_clock_off_by_six_seconds_registers_no_agent(
    time: Passing, ahead: int, *, right: bool
) -> None:
    time.set_ahead(ahead)
    answer = AgentClient().register()
    assert answer.status_code == (201 if right else 503), answer.content
    assert Agent.objects.count() == right
    assert told() == ([] if right else [{"host": platform.node(), "seconds_ahead": ahead}])
    if not right:
        assert (answer.json()["error"], answer["Retry-After"]) == ("temporarily_unavailable", "1")
        time.set_ahead(0)
        time.shift(1.1)
        assert AgentClient().register().status_code == 201


@pytest.mark.parametrize(
    "path",
    ["/v1/tokens", "/v1/grants", "/v1/revoke", "/v1/confirmations",
     "/sign-in/options", "/settings/time-zone", "/admin/invite/"],
)  # fmt: skip
def test_wrong_clock_answers_503_before_reading_input_but_allows_reads(
    time: Passing, path: str
) -> None:
    page = {"Accept": "text/html", "Cookie": "a=b", "Origin": "http://localhost:8000"}
    headers = {} if path.startswith("/v1/") else page
    time.set_ahead(10)
    assert Client().post(path, headers=headers).status_code == 503
    assert Client().get("/.well-known/jwks.json").status_code == 200
    assert Client().get("/sign-in/", headers=page).status_code == 200
    assert [event.kind for event in Event.objects.all()] == [kinds.CLOCK_OFF]
    time.set_ahead(0)
    time.shift(1.1)
    assert Client().post(path, headers=headers).status_code != 503


def test_clock_event_has_database_time_and_repeats_only_after_recovery(time: Passing) -> None:
    began = timezone.now()
    time.set_ahead(3600)
    for _ in range(3):
        with pytest.raises(TemporarilyUnavailableError):
            CLOCK.check()
        time.shift(2)
    event = Event.objects.get()
    assert (event.kind, event.at, event.actor_kind, event.actor_id) == (
        kinds.CLOCK_OFF, began, "system", "clock",
    )  # fmt: skip
    time.set_ahead(0)
    time.shift(2)
    CLOCK.check()
    time.set_ahead(-7)
    time.shift(2)
    with pytest.raises(TemporarilyUnavailableError):
        CLOCK.check()
    assert [each["seconds_ahead"] for each in told()] == [3600, -7]


def test_what_could_not_be_recorded_is_said_the_next_time(
    time: Passing, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OperationalError("disk full")

    time.set_ahead(10)
    with monkeypatch.context() as patch:
        patch.setattr(host_clock_check, "record", full)
        assert Client(raise_request_exception=False).post("/v1/tokens").status_code == 503
    assert told() == []
    assert Client().post("/v1/tokens").status_code == 503
    assert len(told()) == 1


def test_clock_is_compared_once_a_second_and_a_stale_result_is_refused(
    time: Passing, monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    replay_epochs.read_or_create_row()
    with django_assert_num_queries(1):
        for _ in range(10):
            CLOCK.check()
            time.shift(0.1)
    monkeypatch.setattr(replay_epochs, "read_row", away)
    time.shift(1)
    with pytest.raises(OperationalError):
        CLOCK.check()
    # Another thread is reading the database's clock at this moment.
    assert replay_cache_lease.LEASE._looking.acquire()
    monkeypatch.setattr(replay_cache_lease, "LEASE_SECONDS", 0.01)
    with pytest.raises(TemporarilyUnavailableError):
        CLOCK.check()


def test_where_the_home_is_being_left_other_things_go_on(time: Passing) -> None:
    row, database_now = replay_epochs.read_or_create_row()
    row.leaving_at = timezone.now() - timedelta(seconds=1)
    replay_cache_lease.LEASE.renew(row, database_now, time())
    CLOCK.check()


def away() -> None:
    raise OperationalError("connection to database.internal failed")
