"""After a database start its history is compared before any decision; a held one decides nothing.

These are the cases of SA-13.
"""

import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import datetime

import pytest
from django.core.management import CommandError, call_command
from django.db import OperationalError
from django.test import Client
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.checkpoints.checkpoint_copies import ContradictedError, StoreChangedError
from audit.checkpoints.rollback_check import Mark
from audit.models import Event, RefusalCount
from verifier.models import Home
from verifier.services import periodic_rollback_check, replay_cache_lease, rollback_hold
from verifier.services.periodic_rollback_check import mark_history
from verifier.services.replay_cache_lease import halt_of
from verifier.services.replay_epochs import ReplayEpoch, read_or_create_row
from verifier.services.state_watcher import StateNews, Watcher

pytestmark = pytest.mark.django_db

ANY = uuid.UUID(int=1)
# Kinds of request, whose tests tests/FAILURES.md names act by act, and their paths.
ACTS = {
    "verify": ("/v1/verify", "/v1/verify/batch", "/v1/introspect"),
    "issue a token": ("/v1/tokens",),
    "approve, revoke": (
        f"/approvals/{ANY}/decide",
        f"/approvals/{ANY}/revoke/x",
        f"/v1/grants/{ANY}/revoke",
        "/v1/revoke",
    ),
    "pages": ("/", "/sign-in/", "/approvals/", f"/approvals/{ANY}/", "/activity/"),
}


@pytest.fixture
def vouched(monkeypatch: pytest.MonkeyPatch) -> rollback_hold.HistoryComparison:
    """A process that has compared nothing yet."""
    made = rollback_hold.HistoryComparison()
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", made)
    monkeypatch.setattr(rollback_hold, "RETRY_SECONDS", 0)
    return made


def may_work() -> bool:
    """Whether a process that reads the row now may act."""
    return halt_of(read_or_create_row()[0]) is None


def finds(monkeypatch: pytest.MonkeyPatch, error: Exception | None) -> list[Mark | None]:
    """Make the comparison end with `error`. Returns the marks it was called with."""
    asked: list[Mark | None] = []

    def check(mark: Mark | None) -> None:
        asked.append(mark)
        if error is not None:
            raise error

    monkeypatch.setattr(rollback_hold, "check_history", check)
    return asked


def test_SA_13_a_database_that_fits_is_compared_once(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = finds(monkeypatch, None)
    assert may_work()
    assert replay_cache_lease.LEASE.current().number == 1
    assert may_work()
    assert asked == [None]


def test_SA_13_a_database_that_was_set_back_is_held_and_stays_so(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, ContradictedError("It was set back."))
    assert not may_work()
    with pytest.raises(TemporarilyUnavailableError, match="restored from a backup"):
        replay_cache_lease.LEASE.current()
    # Another process, which learns nothing from outside any more.
    finds(monkeypatch, None)
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    assert not may_work()
    for path in ("/v1/tokens", "/v1/agents", "/v1/verify", "/v1/introspect"):
        answer = Client().post(path)
        assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert Client().get("/approvals/").status_code == 503
    assert Client().get("/health/live").status_code == 200
    ready = Client().get("/health/ready").json()
    assert ready["checks"]["history"] == "failing"
    assert ready["checks"]["configuration"] == "ok"
    assert Home.objects.get().held_because == "It was set back."
    assert not Event.objects.exists()


@pytest.mark.parametrize(
    "error", [TemporarilyUnavailableError(), StoreChangedError("Another store.")]
)
def test_SA_13_where_nothing_can_be_asked_nothing_is_decided_yet(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    finds(monkeypatch, error)
    assert not may_work()
    with pytest.raises(TemporarilyUnavailableError, match="not known yet"):
        replay_cache_lease.LEASE.current()
    assert Home.objects.get().held_at is None
    finds(monkeypatch, None)
    assert may_work()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ContradictedError("It was set back."), "restored from a backup"),
        (TemporarilyUnavailableError(), "not known yet"),
    ],
    ids=["set back", "not known yet"],
)
@pytest.mark.parametrize(("act", "paths"), ACTS.items(), ids=[act.replace(",", "") for act in ACTS])
def test_SA_13_every_act_is_503_during_a_history_halt(
    vouched: rollback_hold.HistoryComparison,
    monkeypatch: pytest.MonkeyPatch,
    act: str,
    paths: tuple[str, ...],
    error: Exception,
    told: str,
) -> None:
    finds(monkeypatch, error)
    for path in paths:
        client = Client()
        answer = client.get(path) if act == "pages" else client.post(path)
        assert (answer.status_code, "Retry-After" in answer.headers) == (503, True), path
        assert told in answer.content.decode(), path


@pytest.mark.parametrize(
    "error",
    [ContradictedError("It was set back."), TemporarilyUnavailableError()],
    ids=["set back", "not known yet"],
)
@pytest.mark.parametrize(
    "asked",
    [
        {"path": "/nowhere"},
        {"path": "/v1/agents", "HTTP_HOST": "elsewhere.example"},
        {"path": "/a b"},
        {"path": "/", "QUERY_STRING": "%00"},
        {"path": "/v1/agents", "HTTP_TRANSFER_ENCODING": "chunked"},
        {"path": "/v1/schema/", "HTTP_ACCEPT": "image/png"},
    ],
    ids=["address", "host", "spelling", "query", "length", "accept"],
)
def test_SA_13_no_refusal_is_recorded_during_a_history_halt(
    vouched: rollback_hold.HistoryComparison,
    monkeypatch: pytest.MonkeyPatch,
    asked: dict[str, str],
    error: Exception,
) -> None:
    """An event would fork the history.

    The middleware that refuses these requests runs before the one that checks for a halt.
    """
    finds(monkeypatch, error)
    answer = Client().get(**asked)  # type: ignore[arg-type]  # headers by name
    assert (answer.status_code, answer.json()["error"]) == (503, "temporarily_unavailable")
    assert not Event.objects.exists()
    assert not RefusalCount.objects.exists()


def test_SA_13_a_redis_that_is_away_is_waited_for_ten_seconds(
    vouched: rollback_hold.HistoryComparison,
    monkeypatch: pytest.MonkeyPatch,
    settings: Settings,
) -> None:
    # Nothing listens on this port.
    settings.REDIS_URL = "redis://127.0.0.1:1"
    asked, clock = finds(monkeypatch, None), [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    for second, works in ((0, False), (9.9, False), (10, True)):
        clock[0] = 100.0 + second
        assert may_work() is works
    assert asked == [None]


def test_SA_13_the_jobs_hold_what_redis_knows_more_of(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, now: datetime
) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1"
    monkeypatch.setattr(periodic_rollback_check, "read_mark", lambda: Mark("", 9, "00" * 32))
    with pytest.raises(ContradictedError):
        mark_history(now=now)
    assert "Redis knows of 9 events" in Home.objects.get().held_because


def test_SA_13_of_two_processes_that_hold_it_the_first_says_why() -> None:
    """The second one acts on the reason in the database, not on its own."""
    first, second = read_or_create_row()[0], read_or_create_row()[0]
    rollback_hold.hold(first, "Redis knows more.")
    rollback_hold.hold(second, "The store knows more.")
    assert first.held_because == second.held_because == "Redis knows more."
    assert (Home.objects.get().held_at, Home.objects.get().held_because) == (
        second.held_at,
        "Redis knows more.",
    )
    halt = halt_of(second)
    assert halt is not None
    assert "Redis knows more." in halt.reason


def test_SA_13_another_history_is_news_of_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """A feed that was set back with its database may look as if it continued."""
    news: list[StateNews] = []
    watcher = Watcher(news.append)
    position = watcher._look(None, ())
    position = watcher._look(position, ())
    assert not news[-1].everything
    Home.objects.update(history="20261129012233")
    watcher._look(position, ())
    assert news[-1].everything


def test_SA_13_while_one_thread_compares_all_others_stop(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A lagging replica took over, so what this process knew about the database is void."""
    finds(monkeypatch, None)
    assert replay_cache_lease.LEASE.current().number == 1
    Home.objects.update(vouched_for="an earlier start")
    monkeypatch.setattr(rollback_hold, "HISTORY_COMPARISON", rollback_hold.HistoryComparison())
    monkeypatch.setattr(replay_cache_lease, "FRESH_SECONDS", 0)
    seen: list[bool] = []

    def check(_mark: Mark | None) -> None:
        with pytest.raises(TemporarilyUnavailableError, match="not known yet"):
            replay_cache_lease.LEASE.last_epoch()
        seen.append(True)

    monkeypatch.setattr(rollback_hold, "check_history", check)
    assert replay_cache_lease.LEASE.current().number == 1
    assert seen == [True]


def test_SA_13_a_call_beside_the_first_waits_for_its_comparison(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that just started waits for its comparison instead of refusing calls."""
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    beside: list[Future[ReplayEpoch]] = []

    def check(_mark: Mark | None) -> None:
        beside.append(pool.submit(replay_cache_lease.LEASE.current))
        wait(beside, timeout=0.2)

    monkeypatch.setattr(rollback_hold, "check_history", check)
    with ThreadPoolExecutor(1) as pool:
        assert replay_cache_lease.LEASE.current().number == 1
        assert [each.result().number for each in beside] == [1]


def test_SA_13_pages_with_rows_are_503_where_no_look_succeeds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails() -> None:
        raise OperationalError("the connection was lost")

    monkeypatch.setattr(replay_cache_lease.LEASE, "halt", fails)
    assert Client().get("/v1/audit/checkpoint").status_code == 503
    assert Client().get("/.well-known/jwks.json").status_code == 503
    assert Client().get("/health/live").status_code == 200
    assert Client().get("/v1/schema/").status_code == 200


def test_SA_13_a_command_holds_what_it_is_the_first_to_compare(
    vouched: rollback_hold.HistoryComparison, monkeypatch: pytest.MonkeyPatch
) -> None:
    finds(monkeypatch, ContradictedError("It was set back."))
    with pytest.raises(CommandError, match=r"Nothing was done: held since"):
        call_command("seal_audit")
    assert Home.objects.get().held_because == "It was set back."
