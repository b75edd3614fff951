"""The state cache while the database is slow, stopped or frozen, and under many lookups at once."""

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import DEFAULT_DB_ALIAS, OperationalError, connection, connections, transaction
from django.utils import timezone

from agentauth.protocol.errors import TemporarilyUnavailableError
from audit.kinds import CLOCK_OFF
from audit.models import Event
from kms.state_change_publisher import Subject
from registry.services import tokens
from tests import postgres
from tests.time_limits import within
from verifier.models import Home
from verifier.services import (
    cache_loader,
    clock_readings,
    freshness,
    replay_cache_lease,
    replay_epochs,
    state_cache,
    state_watcher,
)
from verifier.services.cached_token import load_tokens
from verifier.services.clock_readings import ClockReading
from verifier.services.short_timeout_connection import use_own_connection
from verifier.services.state_cache import StateCache
from verifier.services.state_change_feed import Change, Changes
from verifier.services.state_watcher import StateNews, StateReading
from verifier.tests.scene import SYSTEM, scene
from verifier.tests.state_cache_harness import EVERYTHING, Followed, followed, until
from verifier.tests.test_state_cache import issued

pytestmark = pytest.mark.django_db(transaction=True)


def revoke(jti: str) -> None:
    tokens.revoke_token(jti=jti, actor=SYSTEM, now=timezone.now())


@pytest.mark.postgres
def test_a_change_is_called_out_with_its_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    jti = issued(scene())
    monkeypatch.setattr(
        state_watcher, "state_since", lambda position, _seen: Changes((), position, complete=True)
    )
    with followed(monkeypatch) as process:
        process.state(jti)
        with transaction.atomic():
            revoke(jti)
            time.sleep(0.2)
            assert process.held(jti) is not None
        assert until(lambda: process.held(jti) is None, 60) <= within(1.0)


@pytest.mark.postgres
def test_notification_lost_with_its_connection_is_found_by_next_poll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    jti = issued(scene())
    with followed(monkeypatch, look_seconds=0.5) as process:
        process.state(jti)
        with transaction.atomic():
            revoke(jti)
            end_the_listener()
        assert until(lambda: process.held(jti) is None, 60) <= within(1.0)
        process.call(process.cached_state.state_read_at)


@pytest.mark.postgres
def test_a_call_that_is_never_heard_is_made_up_for_by_the_next_look(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_watcher, "_listen", lambda: None)
    jti, other = issued(scene()), issued(scene())
    with followed(monkeypatch, look_seconds=0.5) as process:
        process.state(jti), process.state(other)
        revoke(jti)
        assert until(lambda: process.held(jti) is None, 60) <= within(1.0)
        assert process.held(other) is not None


def end_the_listener() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
            " WHERE application_name = 'agentauth-watching' AND datname = current_database()"
        )
        # That of the test before may not have ended yet.
        assert cursor.fetchone()[0] >= 1


class Counted:
    """Counts the queries, and makes each of them slow."""

    __name__ = "counted"

    def __init__(self) -> None:
        self.wait: Callable[[], object] = partial(time.sleep, 0.02)
        self.sizes: list[int] = []

    def __call__(self, keys: Any) -> Any:
        self.sizes.append(len(keys))
        self.wait()
        return load_tokens(keys)


@pytest.mark.parametrize(("askers", "tokens_asked", "most"), [(1_000, 1, 1), (1_000, 200, 3)])
def test_RF_26_very_many_who_ask_at_once_are_answered_by_few_queries(
    askers: int, tokens_asked: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted()
    monkeypatch.setattr(state_cache, "load_tokens", counted)
    place = scene()
    jtis = [issued(place) for _ in range(tokens_asked)]
    with followed(monkeypatch) as process:

        async def all_at_once() -> list[Any]:
            state = process.cached_state.state
            return await asyncio.gather(
                *(state(jtis[number % tokens_asked]) for number in range(askers))
            )

        answers = process.wait(all_at_once())
        subjects = [hash(Change(Subject.TOKEN, jti)) for jti in jtis]
        assert [known.rests_on[0] for known in answers] == subjects * (askers // tokens_asked)
        assert len(counted.sizes) <= most
        # Each token is read once, or twice if the change that made it was announced meanwhile.
        assert sum(counted.sizes) <= 2 * tokens_asked


def test_RF_26_cancelled_caller_does_not_cancel_a_shared_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(state_cache, "load_tokens", Counted())
    jti = issued(scene())
    with followed(monkeypatch) as process:

        async def one_leaves() -> Any:
            leaves, stays = (
                asyncio.ensure_future(process.cached_state.state(jti)) for _ in range(2)
            )
            await asyncio.sleep(0.005)
            leaves.cancel()
            return await stays

        assert process.wait(one_leaves()) is not None


def test_shared_reads_have_a_wait_limit_and_a_queue_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cache_loader, "WAIT_SECONDS", 0.05)
    monkeypatch.setattr(state_cache, "_MOST_WAITING", 2)
    answers, slow = threading.Event(), Counted()
    slow.wait = lambda: answers.wait(60)  # Until all callers were answered.
    monkeypatch.setattr(state_cache, "load_tokens", slow)
    with followed(monkeypatch) as process:

        async def asked() -> list[Any]:
            state = process.cached_state.state
            return await asyncio.gather(*(state(name) for name in "abc"), return_exceptions=True)

        assert all(isinstance(each, TemporarilyUnavailableError) for each in process.wait(asked()))
        answers.set()
        until(lambda: sum(slow.sizes) == 2, 60)


def test_a_query_that_fails_is_try_again_and_the_next_one_is_tried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jti = issued(scene())
    failing = [OperationalError("gone")]

    def fetch(keys: Any) -> Any:
        if failing:
            raise failing.pop()
        return load_tokens(keys)

    monkeypatch.setattr(state_cache, "load_tokens", fetch)
    with followed(monkeypatch) as process:
        with pytest.raises(TemporarilyUnavailableError):
            process.state(jti)
        assert process.state(jti) is not None


def test_RF_25_nothing_is_decided_by_a_look_of_more_than_five_seconds_ago(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cached_state, began = StateCache(), 1_000.0
    with pytest.raises(TemporarilyUnavailableError):
        cached_state.state_read_at()
    monkeypatch.setattr(clock_readings, "monotonic", lambda: began)
    cached_state._hear(StateNews(look=StateReading(ClockReading.now(), {}, 0.0)))
    for passed, good in ((0.0, True), (4.99, True), (5.0, True), (5.01, False), (3_600.0, False)):
        monkeypatch.setattr(clock_readings, "monotonic", lambda passed=passed: began + passed)
        if good:
            cached_state.state_read_at()
        else:
            with pytest.raises(TemporarilyUnavailableError):
                cached_state.state_read_at()


def test_a_host_that_was_halted_decides_nothing_until_it_has_looked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The monotonic clock stood still with the host; the wall clock was corrected."""
    cached_state, at = StateCache(), [5_000.0]
    monkeypatch.setattr(clock_readings, "monotonic", lambda: 1_000.0)
    monkeypatch.setattr(clock_readings, "time", lambda: at[0])
    cached_state._hear(StateNews(look=StateReading(began := ClockReading.now(), {}, 0.0)))
    # A correction within the allowed clock error changes nothing.
    for at[0] in (5_000.0, 5_005.0, 4_995.0):
        cached_state.state_read_at()
    for at[0] in (5_005.1, 4_994.9):
        with pytest.raises(TemporarilyUnavailableError):
            cached_state.state_read_at()
    at[0] = 5_005.1
    # Nor is a read enough that began before the correction and ended after it.
    cached_state._hear(StateNews(look=StateReading(began, {}, 0.0)))
    with pytest.raises(TemporarilyUnavailableError):
        cached_state.state_read_at()
    cached_state._hear(StateNews(look=StateReading(ClockReading.now(), {}, 0.0)))
    cached_state.state_read_at()


@pytest.mark.parametrize("seconds", [-6, 6])
def test_nothing_is_decided_by_a_clock_that_is_wrong(
    seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, off = replay_epochs.read_row, [seconds]

    def skewed() -> tuple[Home, datetime]:
        row, database_now = look()
        return row, database_now + timedelta(seconds=off[0])

    monkeypatch.setattr(replay_epochs, "read_row", skewed)
    with followed(monkeypatch) as process:
        assert not is_fresh(process)
        # Recorded once. A process that only verifies has no other request that would record it.
        until(lambda: Event.objects.filter(kind=CLOCK_OFF).exists(), within(5))
        time.sleep(0.3)
        assert [event.data["seconds_ahead"] for event in Event.objects.filter(kind=CLOCK_OFF)] == [
            -seconds
        ]
        off[0] = 0
        until(lambda: is_fresh(process), within(2))


def test_each_look_renews_the_lease_of_the_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_cache_lease, "LEASE", replay_cache_lease.Lease())
    with followed(monkeypatch):
        assert replay_cache_lease.LEASE.last_epoch().number == 1
        Home.objects.update(leaving_at=timezone.now(), leaving_for=Home.Kind.DATABASE)

        def left() -> bool:
            try:
                replay_cache_lease.LEASE.last_epoch()
            except TemporarilyUnavailableError:
                return True
            return False

        until(left, within(2))


def is_fresh(process: Followed) -> bool:
    try:
        process.call(process.cached_state.state_read_at)
    except TemporarilyUnavailableError:
        return False
    return True


def test_a_key_change_whose_keys_cannot_be_read_leaves_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene()
    with followed(monkeypatch) as process:
        assert process.call(process.cached_state.token_keys)

        def hears() -> None:
            process.cached_state._hear(StateNews((Change(Subject.KEY, "x"),)))
            # No keys until the next poll, which this thread does not hear before it returns.
            process.cached_state.token_keys()

        with pytest.raises(TemporarilyUnavailableError):
            process.call(hears)
        until(lambda: process.cached_state._keys is not None, within(1))


def test_start_fails_without_a_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_cache, "_START_SECONDS", 0.3)

    def away() -> None:
        raise OSError("nobody there")

    monkeypatch.setattr(state_watcher, "_listen", away)
    with pytest.raises(TemporarilyUnavailableError), followed(monkeypatch):
        pytest.fail("it started")


@dataclass
class Server:
    """A PostgreSQL server that the test may stop and freeze."""

    url: str
    data: Path

    def ctl(self, *arguments: str) -> None:
        bin_dir = postgres.binaries()
        assert bin_dir is not None
        command = [bin_dir / "pg_ctl", "-D", self.data, "-w", *arguments]
        subprocess.run(
            command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            cwd=self.data, **postgres.as_server_user(),  # type: ignore[call-overload]
        )  # fmt: skip

    def signal(self, number: int) -> None:
        """Send a signal to the postmaster and all its children."""
        postmaster = int((self.data / "postmaster.pid").read_text().split()[0])
        children = [
            int(stat.parent.name)
            for stat in Path("/proc").glob("[0-9]*/stat")
            if stat.exists() and int(stat.read_text().rpartition(")")[2].split()[1]) == postmaster
        ]
        for pid in (postmaster, *children):
            os.kill(pid, number)

    def sql(self, *statements: str) -> None:
        given = [part for statement in statements for part in ("-c", statement)]
        subprocess.run(["psql", self.url, "-q", *given], check=True, stdout=subprocess.DEVNULL)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with the test database's schema, which every follower's threads connect to."""
    here = settings.DATABASE_URL
    monkeypatch.delenv("DATABASE_URL")
    with postgres.cluster() as url:
        parts, name = urlsplit(url), connection.settings_dict["NAME"]
        dump = [
            "pg_dump",
            "--schema-only",
            "--no-owner",
            urlsplit(here)._replace(path=f"/{name}").geturl(),
        ]
        schema = subprocess.run(dump, check=True, capture_output=True).stdout
        subprocess.run(["psql", url, "-q"], input=schema, check=True, stdout=subprocess.DEVNULL)
        shown = subprocess.run(
            ["psql", url, "-Atc", "SHOW data_directory"], check=True, capture_output=True, text=True
        )

        def there(name: str) -> None:
            use_own_connection(name)
            connections[DEFAULT_DB_ALIAS].settings_dict |= {
                "NAME": parts.path[1:], "HOST": parts.hostname, "PORT": parts.port,
                "USER": parts.username,
            }  # fmt: skip

        monkeypatch.setattr(state_watcher, "use_own_connection", there)
        monkeypatch.setattr(cache_loader, "use_own_connection", there)
        yield Server(url, Path(shown.stdout.strip()))


# `pg_current_xact_id` numbers the change as `publish` does.
CHANGE = (
    "INSERT INTO verifier_statechange (position, subject, subject_id, at)"
    " VALUES (pg_current_xact_id()::text::bigint, 'agent', '{0}', now());"
    " SELECT pg_notify('agentauth_state', 'agent {0}');"
)


@pytest.mark.postgres
def test_RF_25_a_database_that_was_stopped_is_followed_again_by_itself(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(freshness, "STALE_SECONDS", 1.0)
    with followed(monkeypatch, look_seconds=0.2) as process:
        options = (server.data / "postmaster.opts").read_text().partition(" ")[2]
        server.ctl("-m", "immediate", "stop")
        until(lambda: not is_fresh(process), within(1.5))
        with pytest.raises(TemporarilyUnavailableError):
            process.state("x")
        time.sleep(1)
        told = [line for line in caplog.records if line.name == state_watcher.logger.name]
        assert len(told) == 1
        process.dropped.clear()
        server.ctl("-o", options.replace('"', "'"), "-l", "/dev/null", "start")
        until(lambda: is_fresh(process), within(3))
        # Notifications sent while the process was disconnected are lost, so the whole cache is
        # dropped.
        assert (EVERYTHING, "") in process.dropped
        server.sql(CHANGE.format("later"))
        until(lambda: (Subject.AGENT, "later") in process.dropped, within(1))
        assert process.state("x") is None


@pytest.mark.long
@pytest.mark.postgres
def test_RF_25_frozen_database_makes_state_stale_until_it_thaws(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with followed(monkeypatch, look_seconds=0.5) as process:
        assert process.state("x") is None
        server.signal(signal.SIGSTOP)
        frozen = time.monotonic()
        try:
            # Stale at the earliest 4 s after the freeze, at the latest after 5 s and one poll.
            with pytest.raises(TemporarilyUnavailableError):
                process.state("x")
            until(lambda: not is_fresh(process), 60)
            assert 4.0 < time.monotonic() - frozen < within(6.5)
            time.sleep(max(0, 10 - (time.monotonic() - frozen)))
            assert not is_fresh(process)
        finally:
            server.signal(signal.SIGCONT)
        until(lambda: is_fresh(process), within(2))
        server.sql(CHANGE.format("later"))
        until(lambda: (Subject.AGENT, "later") in process.dropped, within(1))
        until(lambda: process.state("x") is None, within(3))
