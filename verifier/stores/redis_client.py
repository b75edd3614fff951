"""One Redis server, over one connection that all calls of an event loop share.

Commands of one turn of the loop leave in one write; replies arrive in the order of the commands.
A connection with an overdue call is dropped, so that no late reply is taken for another call's.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Final, cast

from hiredis import ProtocolError, Reader, ReplyError, pack_command

from agentauth.protocol.errors import TemporarilyUnavailableError
from verifier.stores.lua_scripts import SCRIPTS
from verifier.stores.redis_url import Address, RedisLocation

logger = logging.getLogger(__name__)

MOST_IN_FLIGHT: Final = 1024
# From connecting until every script is loaded (s). Callers that wait keep their own deadlines.
OPEN_SECONDS: Final = 1.0
# A server may become a replica or begin to evict, so its identity is read this often (s).
KNOWN_SECONDS: Final = 0.5
# Error codes of a server that is or becomes a replica, whose replay cache may be incomplete.
_A_COPY: Final = frozenset({"READONLY", "LOADING", "MASTERDOWN"})
# Circuit breaker: after this many failures in a row, calls fail at once, for 0.1 s up to 1 s.
FAILURES: Final = 3
# Calls that time out waiting for a connection within this long (s) count as one failure.
TOGETHER_SECONDS: Final = 0.05
SHORTEST_REST_SECONDS, LONGEST_REST_SECONDS = 0.1, 1.0
# If the loop sends later than this (s), it was busy, and the calls' deadlines move along.
BUSY_SECONDS: Final = 0.002
IDENTIFY: Final = ("INFO", "server", "replication", "memory")
# One more turn of the loop before an overdue connection is dropped (s).
GRACE_SECONDS: Final = 0.002


class RedisAwayError(TemporarilyUnavailableError):
    """A server did not answer in time, refused, or is paused. Whether the call ran may be unknown.

    `why` is for the log, which shows it as a note. The caller learns only that it may retry.
    """

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.add_note(why)


class ForgetfulServerError(RedisAwayError):
    """Not the server of this epoch, or restarted: it may have forgotten spent proofs."""


class EvictingServerError(RedisAwayError):
    """The server may drop keys to save memory, and spent proofs with them."""


class RedisConnection(asyncio.Protocol):
    """A connection. `ask` gives a future reply or ReplyError, and fails with RedisAwayError."""

    def __init__(self, node: "Node") -> None:
        self.run_id = ""
        # When its identity was last requested, by the loop's clock.
        self.asked_who_at = 0.0
        self._node = node
        self._loop = asyncio.get_running_loop()
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._out_since = 0.0
        # Calls in the order of their commands, each with its deadline.
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        # One timer for all calls, at or before the earliest deadline.
        self._alarm: asyncio.TimerHandle | None = None
        self._overdue = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's.
        self._transport = cast("asyncio.Transport", transport)
        # By default uvloop holds writes until its turn ends, which may be long.
        self._transport.set_write_buffer_limits(high=0)

    @property
    def open(self) -> bool:
        return self._transport is not None

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    def ask(self, command: bytes, due: float) -> asyncio.Future[Any]:
        if self._transport is None:
            raise RedisAwayError("the connection was lost")
        if len(self._waiting) >= MOST_IN_FLIGHT:
            raise RedisAwayError("too many calls at once")
        future: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((future, due))
        if not self._out:
            self._out_since = self._loop.time()
            self._loop.call_soon(self._flush)
        self._out.append(command)
        return future

    def ask_who(self, due: float) -> None:
        """Request the server's identity again. Its reply comes before those to later commands."""
        self.asked_who_at = self._loop.time()
        self.ask(pack(IDENTIFY), due).add_done_callback(self._hear_who)

    def _hear_who(self, told: asyncio.Future[Any]) -> None:
        if told.cancelled() or told.exception() is not None:
            # The connection is being dropped.
            return
        reply = told.result()
        try:
            self.run_id = identity(read_info(reply) if isinstance(reply, bytes) else {})
        except RedisAwayError as error:
            # Nor accept other replies of the same packet.
            self.run_id = ""
            self.drop(error.why)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is None:
            return
        self._transport.write(b"".join(out))
        # Not loop.time(), which stands still for a turn. Our own delay is not the server's fault.
        late = monotonic() - self._out_since
        if late > BUSY_SECONDS:
            last = [self._waiting.pop() for _ in out]
            self._waiting.extend((future, due + late) for future, due in reversed(last))
        self._set_alarm(min(due for _, due in islice(reversed(self._waiting), len(out))))

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if len(waiting) <= len(self._out):
                    self.drop("it sent an answer to no command")
                    return
                future, _ = waiting.popleft()
                # The future of a cancelled caller stays in the queue.
                if not future.done():
                    future.set_result(reply)
        except (ProtocolError, IndexError):
            self.drop("its answer is not in the Redis protocol")

    def connection_lost(self, exc: Exception | None) -> None:
        self.drop("the connection was lost")

    def drop(self, why: str) -> None:
        """Close the connection: every call in flight fails with RedisAwayError."""
        if self._transport is None:
            return
        self._transport.abort()
        self._transport = None
        if self._alarm is not None:
            self._alarm.cancel()
        lost, self._waiting = self._waiting, deque()
        for future, _ in lost:
            if not future.done():
                future.set_exception(RedisAwayError(why))
        self._node.line_lost(self, why, failed=bool(lost))

    def _set_alarm(self, at: float) -> None:
        if self._alarm is None or at < self._alarm.when():
            if self._alarm is not None:
                self._alarm.cancel()
            self._alarm = self._loop.call_at(at, self._ring)

    def _ring(self) -> None:
        self._alarm = None
        sent, now = len(self._waiting) - len(self._out), self._loop.time()
        first = min((due for _, due in islice(self._waiting, sent)), default=now + 1)
        if first > now:
            self._overdue = False
            if sent:
                self._set_alarm(first)
        elif self._overdue:
            self.drop("it did not answer in time")
        else:
            # The reply may have arrived while this loop was busy. Read it before the next ring.
            self._overdue = True
            self._set_alarm(now + GRACE_SECONDS)


class Node:
    """One server and its connection, opened on demand; paused after repeated failures."""

    def __init__(self, place: RedisLocation, address: Address, tls: ssl.SSLContext | None) -> None:
        self.address = address
        self._place, self._tls = place, tls
        self._line: RedisConnection | None = None
        self._opening: asyncio.Task[RedisConnection] | None = None
        self._failures, self._rests_until, self._failed_at = 0, 0.0, float("-inf")
        self._probing = False
        self._logged_at = float("-inf")

    def known_line(self, expected: frozenset[str], now: float) -> "RedisConnection | None":
        """The connection, if it can be used at once. Pass it to `check_line` after the reply."""
        line = self._line
        if line is None or self._failures or now - line.asked_who_at > KNOWN_SECONDS:
            return None
        return line if line.run_id in expected else None

    def check_line(self, line: "RedisConnection", expected: frozenset[str]) -> None:
        """Raise ForgetfulServerError if the server's run id is no longer in `expected`."""
        if line.run_id not in expected:
            raise self._forgetful(line)

    async def ask(
        self, command: bytes, due: float, *, expected: frozenset[str] = frozenset()
    ) -> Any:
        """Send one packed command; return the reply, or the hiredis.ReplyError. `due`: loop time.

        Raises RedisAwayError, and ForgetfulServerError if the run id is not `expected` (none: any).
        """
        if self._failures >= FAILURES:
            return await self._probe(command, due, expected)
        line = self._line
        if line is None:
            line = await self._ensure_open(due)
        reply = await self._ask_expected_server(line, command, due, expected)
        self._failures = 0
        return reply

    async def _ask_expected_server(
        self, line: RedisConnection, command: bytes, due: float, expected: frozenset[str]
    ) -> Any:
        """Ask, and discard the answer if the server has become another one meanwhile."""
        if not expected:
            return await line.ask(command, due)
        self.check_line(line, expected)
        if asyncio.get_running_loop().time() - line.asked_who_at > KNOWN_SECONDS:
            line.ask_who(due)
        reply = await line.ask(command, due)
        self.check_line(line, expected)
        return reply

    async def _probe(self, command: bytes, due: float, expected: frozenset[str]) -> Any:
        """One call at a time probes a failed server; the others fail at once."""
        loop = asyncio.get_running_loop()
        if self._probing or loop.time() < self._rests_until:
            raise RedisAwayError("it failed a moment ago")
        self._probing = True
        try:
            line = self._line or await self._ensure_open(due)
            reply = await self._ask_expected_server(line, command, due, expected)
        except RedisAwayError:
            self._count_failure()
            raise
        finally:
            self._probing = False
        logger.warning("Redis %s answers again", self.address)
        self._failures = 0
        return reply

    def line_lost(self, line: RedisConnection, why: str, *, failed: bool) -> None:
        """Called by the line. `failed`: calls were waiting for an answer."""
        if self._line is line:
            self._line = None
            if failed:
                self._count_failure()
                self.log(why)

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._opening is not None:
            self._opening.cancel()
        if self._line is not None:
            self._line.drop("closed")

    def refusal_error(self, error: ReplyError) -> RedisAwayError:
        """The error for a server's refusal. Drops the connection if the server is a replica."""
        why = f"it refused: {error}"
        self.log(why)
        if self._line is not None and str(error).partition(" ")[0] in _A_COPY:
            self._line.drop(why)
        return RedisAwayError(why)

    def log(self, why: str) -> None:
        """Log at most once a second, whatever the load."""
        now = asyncio.get_running_loop().time()
        if now - self._logged_at >= 1:
            self._logged_at = now
            logger.warning("Redis %s: %s", self.address, why)

    def _count_failure(self) -> None:
        now = asyncio.get_running_loop().time()
        # A call that fails during the pause began before it.
        if now < self._rests_until:
            return
        self._failures, self._failed_at = self._failures + 1, now
        if self._failures >= FAILURES:
            rest = SHORTEST_REST_SECONDS * 2 ** min(self._failures - FAILURES, 10)
            self._rests_until = now + min(rest, LONGEST_REST_SECONDS)

    def _forgetful(self, line: RedisConnection) -> ForgetfulServerError:
        self.log(f"it is not the server that the epoch began with: run id {line.run_id}")
        if not line.busy:
            # The next connection may lead to the right server; the pause limits how often.
            line.drop("another server")
        self._count_failure()
        return ForgetfulServerError(f"another server at {self.address}")

    async def _ensure_open(self, due: float) -> RedisConnection:
        """The connection, opened once for all callers; each waits until its own deadline."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
            self._opening.add_done_callback(self._was_opened)
        opening = self._opening
        remaining = due - asyncio.get_running_loop().time()
        await asyncio.wait([opening], timeout=max(remaining, 0))
        if not opening.done() or opening.cancelled():
            if asyncio.get_running_loop().time() - self._failed_at >= TOGETHER_SECONDS:
                self._count_failure()
            raise RedisAwayError("the connection timed out")
        return opening.result()

    def _was_opened(self, opening: asyncio.Task[RedisConnection]) -> None:
        self._opening = None
        error = None if opening.cancelled() else opening.exception()
        if isinstance(error, RedisAwayError):
            self.log(error.why)

    async def _open(self) -> RedisConnection:
        loop = asyncio.get_running_loop()
        line: RedisConnection | None = None
        try:
            async with asyncio.timeout(OPEN_SECONDS):
                _, line = await loop.create_connection(
                    lambda: RedisConnection(self),
                    self.address.host,
                    self.address.port,
                    ssl=self._tls,
                )
                await self._greet(line, loop.time() + OPEN_SECONDS)
        except (OSError, TimeoutError, RedisAwayError) as error:
            self._count_failure()
            why = error.why if isinstance(error, RedisAwayError) else "no connection"
            raise RedisAwayError(why) from error
        else:
            self._line = line
            return line
        finally:
            # Even if no caller waits any more.
            if line is not None and self._line is not line:
                line.drop("the greeting failed")

    async def _greet(self, line: RedisConnection, due: float) -> None:
        """Authenticate, read the server's identity and load the scripts."""
        place = self._place
        commands: list[tuple[bytes | str | int, ...]] = []
        if place.password:
            commands.append(
                ("AUTH", place.user, place.password) if place.user else ("AUTH", place.password)
            )
        if place.database:
            commands.append(("SELECT", place.database))
        commands += [("CLIENT", "SETNAME", "agentauth-verifier"), IDENTIFY]
        commands += [("SCRIPT", "LOAD", script.source) for script in SCRIPTS]
        line.asked_who_at = asyncio.get_running_loop().time()
        replies = await asyncio.gather(
            *(line.ask(pack(command), due) for command in commands), return_exceptions=True
        )
        info: dict[str, str] = {}
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, RedisAwayError):
                raise reply
            if isinstance(reply, BaseException):
                raise RedisAwayError(f"{command[0]!r} is refused: {reply}")
            if command is IDENTIFY:
                info = read_info(reply)
        if not line.open:
            # It was lost right after the last reply.
            raise RedisAwayError("the connection was lost")
        line.run_id = identity(info)


def read_info(reply: bytes) -> dict[str, str]:
    """The fields of an INFO reply."""
    lines = (line.partition(":") for line in reply.decode().splitlines() if ":" in line)
    return {name: value for name, _, value in lines}


def identity(info: Mapping[str, str]) -> str:
    """A server's run id, new at each start, and replication id, new after it was a replica.

    Raises RedisAwayError if the reply lacks them, and its subclass EvictingServerError.
    """
    run, data = info.get("run_id"), info.get("master_replid")
    if not (run and data):
        raise RedisAwayError("it does not report its run id and replication id")
    if info.get("maxmemory_policy") != "noeviction":
        raise EvictingServerError(
            "maxmemory-policy must be noeviction: it may forget spent proofs otherwise"
        )
    return f"{run}:{data}"


def pack(parts: Sequence[bytes | str | int]) -> bytes:
    """Encode a command for the wire."""
    return cast("bytes", pack_command(cast("Any", tuple(parts))))
