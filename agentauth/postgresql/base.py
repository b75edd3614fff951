"""Connections to PostgreSQL that do not wait for ever.

Statement and lock timeouts are the server's. If the network swallows what is sent, or the server
stands still, they end nothing, and TCP is content as long as the bytes are acknowledged: only a
timeout on the client's side helps.
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
from psycopg import Connection, IsolationLevel, OperationalError
from psycopg.abc import RV, PQGen
from psycopg.errors import ConnectionTimeout
from psycopg.pq import TransactionStatus

# How often psycopg wakes up while it waits (s).
_INTERVAL: Final = 0.1
_LIMITS: Final = {
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
# After this many unanswered calls in a row only one thread tries again, after a pause (s).
_MOST_UNANSWERED: Final = 2
_PAUSE_SECONDS: Final = 1


def use_short_timeouts() -> None:
    """From now on, a new connection of this process waits SHORT_SECONDS (and one more) at most.

    Options in the database's URL win.
    """
    settings = connections.settings[DEFAULT_DB_ALIAS]
    if settings["ENGINE"] == __package__:
        settings["OPTIONS"] = DatabaseWrapper.limits(SHORT_SECONDS) | settings["OPTIONS"]


def answer_soon_here() -> None:
    """The same for this thread's connection alone, if it is not open yet."""
    here = connections[DEFAULT_DB_ALIAS]
    if here.settings_dict["ENGINE"] == __package__:
        options = DatabaseWrapper.limits(SHORT_SECONDS) | here.settings_dict["OPTIONS"]
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
        if self._unanswered < _MOST_UNANSWERED:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                raise OperationalError("the database did not answer a moment ago")
            self._until = now + SHORT_SECONDS + _SPARE_SECONDS

    def record_timeout(self) -> None:
        """Record a wait without an answer."""
        with self._lock:
            self._unanswered += 1
            self._until = time.monotonic() + _PAUSE_SECONDS

    def record_answer(self) -> None:
        """Record an answer, even an error. Costs next to nothing: it runs after every answer."""
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
        except OperationalError as error:
            if (
                error.sqlstate is None
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
    def limits(seconds: int) -> dict[str, Any]:
        """Options of a connection whose statements, and sent data, take `seconds` at most.

        For processes that answer requests.
        """
        milliseconds = seconds * 1000
        return {
            "connect_timeout": SHORT_SECONDS,
            # The lock timeout comes first: its error says what was waited for while the caller
            # waits. A call waits as long for another with its Idempotency-Key (docs/protocol.md
            # section 0).
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
        return _LIMITS | super().get_connection_params()

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
            with self.cursor() as heard:
                heard.execute(sql, values)
                return (heard.fetchall() if heard.description else []), heard.rowcount
        self._be_ready()
        with self.wrap_database_errors:
            (cursor,) = self._cursors(1)
            cursor.execute(sql, values, prepare=True)
            return _fetch_rows(cursor)

    def run_pipelined(
        self, statements: Sequence[tuple[str, Sequence[Any]]]
    ) -> list[tuple[list[tuple[Any, ...]], int]]:
        """`run_prepared` for each, all sent before the first answer is awaited.

        Raises the error of the first that failed; those after it were not executed.
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
        """Whether nothing shows that it is lost. Django would ask the server, at every request.

        On an idle connection the server sends nothing but its goodbye, and if the network is
        broken, keepalives find out and hang up. After an error that was not the data's another
        connection is used: what was prepared on this one may no longer fit.
        """
        if self.errors_occurred:
            return False
        try:
            heard = select.poll()
            heard.register(self.connection.pgconn.socket, select.POLLIN)
            while heard.poll(0):
                # A notice is no goodbye; the end raises.
                self.connection.pgconn.consume_input()
        except OperationalError:
            return False
        return True


def _fetch_rows(cursor: Any) -> tuple[list[tuple[Any, ...]], int]:
    # Not `cursor.description`: it is rebuilt on each access, column by column.
    return (cursor.fetchall() if cursor.pgresult.nfields else []), cursor.rowcount
