"""Connections to PostgreSQL that do not wait for ever.

The server enforces statement and lock timeouts. They do not help if the network drops packets or
the server hangs, and TCP goes on waiting as long as the bytes are acknowledged. So the client needs
a timeout of its own.
"""

import select
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, Final

from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.postgresql import base
from django.utils.asyncio import async_unsafe
from psycopg import Connection, Error, IsolationLevel, OperationalError
from psycopg.abc import RV, PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus

# As psycopg's default: how often it wakes up to check for a signal or a closed socket (s).
_INTERVAL: Final = 0.1
# For jobs and commands: no caller waits.
_DEFAULT_OPTIONS: Final = {
    # A transaction left open by a client that was cut off holds its locks this long at most.
    "options": "-c statement_timeout=10000 -c lock_timeout=5000 -c "
    "idle_in_transaction_session_timeout=30000",
    "connect_timeout": 5,
    # Longer than the server's statement timeout, so that the server reports it where it can.
    "answer_seconds": 12,
    # A lost connection is noticed after 10 s, whether idle or with data not yet acknowledged.
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Where a caller waits for the answer: the limit of each statement and of each attempt to connect.
SHORT_SECONDS: Final = 2
# How much longer the client waits for the server's own timeout error.
_SPARE_SECONDS: Final = 1
# After this many timeouts in a row, the circuit opens.
_TIMEOUTS_TO_OPEN: Final = 2
# How long it stays open until one thread tries again (s).
_OPEN_SECONDS: Final = 1


def use_short_timeouts() -> None:
    """New connections of this process wait at most SHORT_SECONDS for each host.

    They wait at most SHORT_SECONDS + _SPARE_SECONDS for each answer. An option in the database's
    URL replaces ours; `options` there replaces all of the server's timeouts, so repeat them in it.
    """
    settings = connections.settings[DEFAULT_DB_ALIAS]
    if settings["ENGINE"] == __package__:
        settings["OPTIONS"] = DatabaseWrapper.short_options(SHORT_SECONDS) | settings["OPTIONS"]


def use_short_timeouts_here() -> None:
    """As `use_short_timeouts`, for this thread's connection only. No effect while it is open."""
    here = connections[DEFAULT_DB_ALIAS]
    if here.settings_dict["ENGINE"] == __package__:
        options = DatabaseWrapper.short_options(SHORT_SECONDS) | here.settings_dict["OPTIONS"]
        here.settings_dict = here.settings_dict | {"OPTIONS": options}


class SilenceBreaker:
    """Circuit breaker: while the server is silent, no other thread waits for it. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self._until = 0.0

    def check(self) -> None:
        """Call before connecting. Raises OperationalError while the circuit is open.

        One thread may try now and then.
        """
        if self._unanswered < _TIMEOUTS_TO_OPEN:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                raise OperationalError("the database did not answer a moment ago")
            # As long as an attempt with short timeouts at one host takes. With more hosts, or with
            # _DEFAULT_OPTIONS, a second thread may try meanwhile.
            self._until = now + SHORT_SECONDS + _SPARE_SECONDS

    def record_timeout(self) -> None:
        """Record a wait without an answer."""
        with self._lock:
            self._unanswered += 1
            self._until = time.monotonic() + _OPEN_SECONDS

    def record_answer(self) -> None:
        """Record an answer, even an error. It runs after every answer, so it takes no lock."""
        self._unanswered = 0


# This process's own.
SILENCE = SilenceBreaker()


class BoundedConnection(Connection[Any]):
    """Closes if an answer takes over `answer_seconds`; whether the act was done is then unknown."""

    answer_seconds: float
    # Reused for statements with fixed text: a new cursor costs more than the query itself.
    kept_cursors: list[Any]

    def wait(self, gen: PQGen[RV], interval: float = _INTERVAL, timeout: float | None = None) -> RV:
        if timeout is not None:
            # The caller sets its own timeout, for a notification that need not come.
            return super().wait(gen, interval, timeout)
        try:
            answer = super().wait(gen, interval, self.answer_seconds)
        except Error as error:
            if error.sqlstate is not None:
                # The server's own error.
                SILENCE.record_answer()
            elif (
                isinstance(error, OperationalError)
                and self.pgconn.transaction_status == TransactionStatus.ACTIVE
            ):
                # Close it: the late answer would be read as that of the next statement.
                self.pgconn.finish()
                SILENCE.record_timeout()
                raise OperationalError(f"no answer within {self.answer_seconds} s") from None
            raise
        SILENCE.record_answer()
        return answer


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's, with time limits that options may change. `answer_seconds` is our own option."""

    @staticmethod
    def short_options(seconds: int) -> dict[str, Any]:
        """Options for processes that answer requests.

        A statement, and sent data that is not acknowledged, wait at most `seconds`.
        """
        milliseconds = seconds * 1000
        return {
            "connect_timeout": SHORT_SECONDS,
            # The lock timeout is shorter than the statement timeout, so that the error names the
            # lock. A call waits equally long for another call with its Idempotency-Key
            # (docs/protocol.md section 0).
            "options": (
                f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds * 4 // 5}"
                " -c idle_in_transaction_session_timeout=30000"
                # A prepared statement keeps the plan made when its table was tiny, often a
                # sequential scan, until the next ANALYZE: after a quiet night, payments would read
                # whole tables for a minute. Where no index serves, PostgreSQL still scans, but at
                # a cost that would start its compiler (jit).
                " -c enable_seqscan=off -c jit=off"
            ),
            "answer_seconds": seconds + _SPARE_SECONDS,
            "keepalives_idle": 2,
            "keepalives_interval": 1,
            "keepalives_count": 2,
            "tcp_user_timeout": milliseconds,
        }

    def get_connection_params(self) -> dict[str, Any]:
        return _DEFAULT_OPTIONS | super().get_connection_params()

    @async_unsafe
    def get_new_connection(self, conn_params: dict[str, Any]) -> BoundedConnection:
        # This backend supports neither a pool nor another isolation level.
        self.isolation_level = IsolationLevel.READ_COMMITTED
        answer_seconds = conn_params.pop("answer_seconds")
        SILENCE.check()
        try:
            made = BoundedConnection.connect(**conn_params)
        except OperationalError as error:
            if isinstance(error, ConnectionTimeout):
                SILENCE.record_timeout()
            else:
                SILENCE.record_answer()
            # The failed frame and the error refer to each other, and keep the half-open connection
            # and its file open until a garbage collection. After a timeout (psycopg 3.3) only this
            # closes it.
            traceback.clear_frames(error.__traceback__)
            raise
        SILENCE.record_answer()
        made.answer_seconds, made.kept_cursors = answer_seconds, []
        return made

    def run_prepared(self, sql: str, values: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
        """The rows of a statement with fixed text, and how many it touched. Prepared at first use.

        Like a Django cursor, without the objects that it creates each time. Raises django.db
        errors.
        """
        if self.queries_logged or self.execute_wrappers:
            # Query logging or a wrapper is active: it must see this statement like any other.
            with self.cursor() as cursor:
                cursor.execute(sql, values)
                return (cursor.fetchall() if cursor.description else []), cursor.rowcount
        self._be_ready()
        with self.wrap_database_errors:
            (cursor,) = self._cursors(1)
            cursor.execute(sql, values, prepare=True)
            return _fetch_rows(cursor)

    def run_pipelined(
        self, statements: Sequence[tuple[str, Sequence[Any]]]
    ) -> list[tuple[list[tuple[Any, ...]], int]]:
        """`run_prepared` for each, all sent before the first answer is awaited.

        Raises the error of the first that failed; those after it were not executed. Call it in a
        transaction: in autocommit, it depends on query logging whether those before it stay.
        """
        if len(statements) == 1 or self.queries_logged or self.execute_wrappers:
            return [self.run_prepared(*each) for each in statements]
        self._be_ready()
        with self.wrap_database_errors:
            cursors = self._cursors(len(statements))
            with self.connection.pipeline():
                for cursor, (sql, values) in zip(cursors, statements, strict=True):
                    cursor.execute(sql, values, prepare=True)
            return [_fetch_rows(cursor) for cursor in cursors]

    def _be_ready(self) -> None:
        self.close_if_health_check_failed()
        self.ensure_connection()
        self.validate_no_broken_transaction()

    def _cursors(self, count: int) -> list[Any]:
        kept: list[Any] = self.connection.kept_cursors
        if any(cursor.closed for cursor in kept):
            kept.clear()
        while len(kept) < count:
            kept.append(self.create_cursor())
        return kept[:count]

    def is_usable(self) -> bool:
        """Whether the connection still seems usable.

        Django's own check would query the server at every request. An idle connection becomes
        readable only when the server closes it, or sends a notice before it does; if the network is
        broken, keepalives close it. After any error but a DataError or IntegrityError, say no: what
        is prepared on this connection may no longer fit the schema.
        """
        if self.errors_occurred:
            return False
        try:
            poller = select.poll()
            poller.register(self.connection.pgconn.socket, select.POLLIN)
            while poller.poll(0):
                # A notice alone is not the end; at the end this raises.
                self.connection.pgconn.consume_input()
        except OperationalError:
            return False
        return True


def _fetch_rows(cursor: Any) -> tuple[list[tuple[Any, ...]], int]:
    # Not `cursor.description`: it is rebuilt on each access, column by column.
    return (cursor.fetchall() if cursor.pgresult.nfields else []), cursor.rowcount
