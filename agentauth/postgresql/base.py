"""Connections to PostgreSQL that do not wait for ever.

The limits of statements and locks are the server's. Where the way to it swallows what is sent, or it stands still, they end
nothing, and TCP is content as long as somebody takes the bytes: only the client's own clock helps.
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

# How often psycopg looks up while it waits (s).
_INTERVAL: Final = 0.1
_LIMITS: Final = {
    # What is left open by one who cannot be heard any more holds its locks for so long at most.
    "options": "-c statement_timeout=10000 -c lock_timeout=5000 -c idle_in_transaction_session_timeout=30000",
    "connect_timeout": 5,
    # Longer than the server lets a statement take, so that it is the server who says so where it can.
    "answer_seconds": 12,
    # A connection that is used by nobody is known to be lost after 10 s, what was sent on one after as long.
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
# Where somebody waits for the answer: no statement takes longer, and no attempt to connect.
SHORT_SECONDS: Final = 2
# And no wait for a lock: it ends before the statement does, so that the server says what was waited for. It is also how long a
# call waits for another with its Idempotency-Key (docs/protocol.md section 0).
LOCK_SECONDS: Final = SHORT_SECONDS * 4 / 5
# The server's own word, that a statement took too long, is waited for this much longer.
_SPARE_SECONDS: Final = 1
# So many in a row that had no answer, and nobody else waits for one; one tries again after so long.
_MOST_UNANSWERED: Final = 2
_PAUSE_SECONDS: Final = 1


def answer_soon() -> None:
    """From now on no connection that this process makes waits for longer than SHORT_SECONDS, and one more, for an answer.

    What the database's URL says of it stays.
    """
    settings = connections.settings[DEFAULT_DB_ALIAS]
    if settings["ENGINE"] == __package__:
        settings["OPTIONS"] = DatabaseWrapper.limits(SHORT_SECONDS) | settings["OPTIONS"]


def answer_soon_here() -> None:
    """The same for the connection of this thread alone, where it is not made yet."""
    here = connections[DEFAULT_DB_ALIAS]
    if here.settings_dict["ENGINE"] == __package__:
        options = DatabaseWrapper.limits(SHORT_SECONDS) | here.settings_dict["OPTIONS"]
        here.settings_dict = here.settings_dict | {"OPTIONS": options}


class Silence:
    """Whether the server is known not to answer just now: then nobody else of this process waits for it. For any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._unanswered = 0
        self._until = 0.0

    def check(self) -> None:
        """Before somebody connects. Raises OperationalError while it is so, but for one who tries, now and then."""
        if self._unanswered < _MOST_UNANSWERED:
            return
        with self._lock:
            now = time.monotonic()
            if now < self._until:
                raise OperationalError("the database did not answer a moment ago")
            self._until = now + SHORT_SECONDS + _SPARE_SECONDS

    def unanswered(self) -> None:
        """Somebody waited in vain."""
        with self._lock:
            self._unanswered += 1
            self._until = time.monotonic() + _PAUSE_SECONDS

    def heard(self) -> None:
        """It said something, be it no. Costs next to nothing: it stands behind every answer."""
        self._unanswered = 0


# This process's own.
SILENCE = Silence()


class BoundedConnection(Connection[Any]):
    """One that is closed where an answer takes longer than `answer_seconds`. Whether that was done is then not known."""

    answer_seconds: float
    # For statements that are written once: a new cursor for each is more work than what it asks.
    kept_cursors: list[Any]

    def wait(self, gen: PQGen[RV], interval: float = _INTERVAL, timeout: float | None = None) -> RV:
        if timeout is not None:
            # For what need not come, a notification: whoever waits for that says how long.
            return super().wait(gen, interval, timeout)
        try:
            answer = super().wait(gen, interval, self.answer_seconds)
        except OperationalError as error:
            if error.sqlstate is None and self.pgconn.transaction_status == TransactionStatus.ACTIVE:
                # The server said nothing: it still owes the answer, and would give it to the next question.
                self.pgconn.finish()
                SILENCE.unanswered()
                raise OperationalError(f"no answer within {self.answer_seconds} s") from None
            raise
        SILENCE.heard()
        return answer


class DatabaseWrapper(base.DatabaseWrapper):
    """Django's with limits of time, each of which an option may change; `answer_seconds` is one that Django does not know."""

    @staticmethod
    def limits(seconds: int) -> dict[str, Any]:
        """Options of a connection whose statements take `seconds` at most; for what was sent and is not acknowledged, as long."""
        milliseconds = seconds * 1000
        return {
            "connect_timeout": SHORT_SECONDS,
            # A wait for a lock ends first: it says what was waited for, to somebody who is still there to hear it.
            "options": f"-c statement_timeout={milliseconds} -c lock_timeout={milliseconds * 4 // 5}"
            " -c idle_in_transaction_session_timeout=30000",
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
        # Neither a pool nor another level is an option here.
        self.isolation_level = IsolationLevel.READ_COMMITTED
        answer_seconds = conn_params.pop("answer_seconds")
        SILENCE.check()
        try:
            made = BoundedConnection.connect(**conn_params)
        except OperationalError as error:
            if isinstance(error, ConnectionTimeout):
                SILENCE.unanswered()
            else:
                SILENCE.heard()
            # The frame that failed holds the error and what was half connected, and is held by the error: a circle, and an
            # open file until somebody collects garbage. Of one whose time was up (psycopg 3.3) nobody else lets go.
            traceback.clear_frames(error.__traceback__)
            raise
        SILENCE.heard()
        made.answer_seconds, made.kept_cursors = answer_seconds, []
        return made

    def run_prepared(self, sql: str, values: Sequence[Any]) -> tuple[list[tuple[Any, ...]], int]:
        """The rows of a statement that is written once, and how many it touched. Prepared at its first use.

        As by a cursor of Django's, but for what that makes anew each time. Raises django.db errors.
        """
        if self.queries_logged or self.execute_wrappers:
            # Somebody listens: they hear it as any other.
            with self.cursor() as heard:
                heard.execute(sql, values)
                return (heard.fetchall() if heard.description else []), heard.rowcount
        self._be_ready()
        with self.wrap_database_errors:
            (cursor,) = self._cursors(1)
            cursor.execute(sql, values, prepare=True)
            return _told(cursor)

    def run_pipelined(
        self, statements: Sequence[tuple[str, Sequence[Any]]]
    ) -> list[tuple[list[tuple[Any, ...]], int]]:
        """`run_prepared` of each, all sent before the first answer is waited for. Raises the error of the first that failed;
        those after it were not executed.
        """
        if len(statements) == 1 or self.queries_logged or self.execute_wrappers:
            return [self.run_prepared(*each) for each in statements]
        self._be_ready()
        with self.wrap_database_errors:
            cursors = self._cursors(len(statements))
            with self.connection.pipeline():
                for cursor, (sql, values) in zip(cursors, statements, strict=True):
                    cursor.execute(sql, values, prepare=True)
            return [_told(cursor) for cursor in cursors]

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
        """Whether nothing speaks against it: Django would ask the server, at every request.

        An idle connection has nothing to say but good-bye, and where the way to it is broken, keepalives find out and hang
        up. After an error that was not the data's another is taken: what was prepared on this one may fit no more.
        """
        if self.errors_occurred:
            return False
        try:
            heard = select.poll()
            heard.register(self.connection.pgconn.socket, select.POLLIN)
            while heard.poll(0):
                # A notice is no good-bye; the end raises.
                self.connection.pgconn.consume_input()
        except OperationalError:
            return False
        return True


def _told(cursor: Any) -> tuple[list[tuple[Any, ...]], int]:
    # `cursor.description` would be made anew, column by column.
    return (cursor.fetchall() if cursor.pgresult.nfields else []), cursor.rowcount
