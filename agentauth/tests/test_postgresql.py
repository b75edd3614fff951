"""PostgreSQL connections: their parameters, and that no wait for an answer is endless."""

import gc
import select
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import (
    DEFAULT_DB_ALIAS,
    DataError,
    NotSupportedError,
    OperationalError,
    connections,
    transaction,
)

from agentauth.postgresql import base
from agentauth.postgresql.base import SILENCE, use_short_timeouts
from agentauth.settings import database
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.time_limits import within
from verifier.services.short_timeout_connection import use_own_connection


def test_what_the_url_says_of_the_connection_is_not_lost() -> None:
    from agentauth.postgresql.base import DatabaseWrapper

    given = connections[DEFAULT_DB_ALIAS].settings_dict | database(
        "postgres://a:b@h/d?sslmode=verify-full"
    )
    parameters = DatabaseWrapper(given).get_connection_params()
    assert parameters["sslmode"] == "verify-full"
    assert "statement_timeout=10000" in parameters["options"]
    # The server's own timeout comes first.
    assert parameters["answer_seconds"] > 10


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch, django_db_blocker: Any) -> Iterator[FaultProxy]:
    """This thread's connection goes through the proxy. Before a fault, call `wait_at_most(1)`."""
    parts, before = urlsplit(settings.DATABASE_URL), connections[DEFAULT_DB_ALIAS]
    with fault_proxy(parts.port or 5432) as proxy, django_db_blocker.unblock():
        use_own_connection("test")
        own = connections[DEFAULT_DB_ALIAS]
        own.settings_dict |= {"HOST": "127.0.0.1", "PORT": proxy.port, "NAME": parts.path[1:]}
        wait_at_most(60)
        yield proxy
        own.close()
        connections[DEFAULT_DB_ALIAS] = before


def wait_at_most(seconds: int) -> None:
    """For an answer, or for a connection: long while all is well, however slow this machine is."""
    own = connections[DEFAULT_DB_ALIAS]
    own.settings_dict["OPTIONS"] |= {"answer_seconds": seconds, "connect_timeout": seconds}
    if own.connection is not None:
        own.connection.answer_seconds = seconds


def ask(query: str) -> Any:
    with connections[DEFAULT_DB_ALIAS].cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchone()[0]


@pytest.mark.postgres
@pytest.mark.parametrize("mode", ["blackhole", "noreply"])
def test_RF_4_unanswered_query_ends_its_connection_and_the_next_works(
    far: FaultProxy, mode: str
) -> None:
    assert ask("SELECT 1") == 1
    wait_at_most(1)
    far.mode = mode
    began = time.monotonic()
    with pytest.raises(OperationalError, match="no answer within 1 s"):
        ask("SELECT 2")
    assert time.monotonic() - began < within(5)
    # A new query must not get the answer to an earlier one.
    with pytest.raises(OperationalError):
        ask("SELECT 3")
    far.mode = "pass"
    wait_at_most(60)
    connections[DEFAULT_DB_ALIAS].close_if_unusable_or_obsolete()
    assert ask("SELECT 4") == 4


@pytest.mark.postgres
def test_RF_4_an_attempt_to_connect_that_was_given_up_keeps_no_file(far: FaultProxy) -> None:
    """While the database hangs, attempts keep failing in processes that seldom collect garbage."""
    wait_at_most(2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connections[DEFAULT_DB_ALIAS].settings_dict["PORT"] = silent.getsockname()[1]
        gc.collect()
        gc.disable()
        try:
            before = set(Path("/proc/self/fd").iterdir())
            with pytest.raises(OperationalError, match="timeout expired"):
                ask("SELECT 1")
            assert set(Path("/proc/self/fd").iterdir()) == before
        finally:
            gc.enable()


@pytest.mark.postgres
def test_RF_4_after_two_unanswered_calls_only_one_caller_tries_again(
    far: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As long as this machine may need; the test ends the pause below.
    monkeypatch.setattr(base, "_OPEN_SECONDS", 600)
    monkeypatch.setattr(base, "_SPARE_SECONDS", 600)

    def waits() -> bool:
        """Whether a new connection was attempted, not refused at once."""
        connections[DEFAULT_DB_ALIAS].close()
        with pytest.raises(OperationalError) as refused:
            ask("SELECT 1")
        return "did not answer a moment ago" not in str(refused.value)

    assert ask("SELECT 1") == 1
    wait_at_most(2)
    far.mode = "noreply"
    assert [waits() for _ in range(3)] == [True, True, False]
    # One caller tries, and the others still do not wait.
    monkeypatch.setattr(SILENCE, "_until", 0.0)
    SILENCE.check()
    assert not waits()
    far.mode = "pass"
    wait_at_most(60)
    SILENCE.record_answer()
    assert ask("SELECT 1") == 1


@pytest.mark.postgres
def test_RF_4_one_timeout_among_answered_queries_is_not_an_outage(far: FaultProxy) -> None:
    """A wait for a lock, while other queries go on."""
    for _ in range(3):
        SILENCE.record_timeout()
        connections[DEFAULT_DB_ALIAS].close()
        assert ask("SELECT 1") == 1


@pytest.mark.postgres
def test_RF_4_error_of_a_statement_is_an_answer(
    far: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_OPEN_SECONDS", 600)
    assert ask("SELECT 1") == 1
    for _ in range(2):
        SILENCE.record_timeout()
    with pytest.raises(DataError):
        ask("SELECT 1 / 0")
    SILENCE.check()


def test_RF_4_web_processes_wait_for_two_seconds_and_one_more() -> None:
    before = connections.settings[DEFAULT_DB_ALIAS]
    connections.settings[DEFAULT_DB_ALIAS] = database("postgres://a:b@h/d?connect_timeout=9")
    try:
        use_short_timeouts()
        options = connections.settings[DEFAULT_DB_ALIAS]["OPTIONS"]
        assert "statement_timeout=2000 -c lock_timeout=1600" in options["options"]
        # The URL's values win.
        assert (options["answer_seconds"], options["connect_timeout"]) == (3, 9)
        assert options["server_side_binding"]
    finally:
        connections.settings[DEFAULT_DB_ALIAS] = before


@pytest.mark.postgres
def test_RF_4_unanswered_commit_is_not_a_success(far: FaultProxy) -> None:
    assert ask("SELECT 1") == 1

    def commit() -> None:
        with transaction.atomic():
            ask("SELECT 2")
            wait_at_most(1)
            far.mode = "noreply"

    with pytest.raises(OperationalError):
        commit()


@pytest.mark.postgres
def test_who_waits_for_a_notification_waits_as_long_as_he_said(far: FaultProxy) -> None:
    assert ask("SELECT 1") == 1
    began = time.monotonic()
    assert list(connections[DEFAULT_DB_ALIAS].connection.notifies(timeout=1.5)) == []
    assert time.monotonic() - began > 1.4
    assert ask("SELECT 2") == 2


@pytest.mark.postgres
def test_what_is_left_open_gives_its_locks_back(far: FaultProxy) -> None:
    assert ask("SHOW idle_in_transaction_session_timeout") == "30s"


def meanwhile(statement: str) -> None:
    """On another connection."""
    other = connections[DEFAULT_DB_ALIAS].copy()
    with closing(other), other.cursor() as cursor:
        cursor.execute(statement)


@pytest.mark.postgres
def test_connection_ended_by_the_server_is_noticed_before_next_request(far: FaultProxy) -> None:
    pid = ask("SELECT pg_backend_pid()")
    meanwhile(f"SELECT pg_terminate_backend({pid}, 900)")
    # Its goodbye comes through the proxy too.
    gone = select.poll()
    gone.register(connections[DEFAULT_DB_ALIAS].connection.pgconn.socket, select.POLLRDHUP)
    assert gone.poll(60_000)
    connections[DEFAULT_DB_ALIAS].close_if_unusable_or_obsolete()
    assert ask("SELECT pg_backend_pid()") != pid


@pytest.mark.postgres
def test_a_plan_that_fits_no_more_fails_once(far: FaultProxy) -> None:
    meanwhile("DROP TABLE IF EXISTS replanned; CREATE TABLE replanned AS SELECT 1 AS number")
    try:
        for _ in range(7):
            assert ask("SELECT number FROM replanned") == 1
        meanwhile("ALTER TABLE replanned ALTER number TYPE bigint")
        with pytest.raises(NotSupportedError):
            ask("SELECT number FROM replanned")
        connections[DEFAULT_DB_ALIAS].close_if_unusable_or_obsolete()
        assert ask("SELECT number FROM replanned") == 1
    finally:
        meanwhile("DROP TABLE replanned")


TWICE = "SELECT %s::int * 2"


def prepared() -> int:
    return int(ask("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%::int * 2'"))


@pytest.mark.postgres
@pytest.mark.django_db
def test_a_statement_that_is_written_once_is_prepared_at_its_first_use() -> None:
    own: Any = connections[DEFAULT_DB_ALIAS]
    assert own.run_prepared(TWICE, [4]) == ([(8,)], 1)
    assert own.run_prepared(TWICE, [5]) == ([(10,)], 1)
    assert prepared() == 1


@pytest.mark.postgres
@pytest.mark.django_db
def test_who_listens_hears_statements_that_are_written_once() -> None:
    own: Any = connections[DEFAULT_DB_ALIAS]
    heard = []

    def listen(execute: Any, sql: str, *rest: Any) -> Any:
        heard.append(sql)
        return execute(sql, *rest)

    with own.execute_wrapper(listen):
        assert own.run_prepared(TWICE, [4]) == ([(8,)], 1)
    assert heard == [TWICE]


@pytest.mark.postgres
@pytest.mark.django_db
def test_run_prepared_raises_django_errors_also_in_broken_transaction() -> None:
    own: Any = connections[DEFAULT_DB_ALIAS]
    with pytest.raises(DataError), transaction.atomic():
        own.run_prepared("SELECT 1 / %s::int", [0])
    assert own.run_prepared(TWICE, [4]) == ([(8,)], 1)
    with transaction.atomic():
        transaction.set_rollback(True)
        with pytest.raises(transaction.TransactionManagementError):
            own.run_prepared(TWICE, [4])


@pytest.mark.postgres
def test_a_statement_that_is_written_once_finds_the_next_connection(far: FaultProxy) -> None:
    own: Any = connections[DEFAULT_DB_ALIAS]
    assert own.run_prepared(TWICE, [4]) == ([(8,)], 1)
    own.close()
    assert own.run_prepared(TWICE, [5]) == ([(10,)], 1)
    wait_at_most(1)
    far.mode = "blackhole"
    with pytest.raises(OperationalError, match="no answer within 1 s"):
        own.run_prepared(TWICE, [6])
