"""Accept connections on the least-loaded worker process of the verifier's server.

Processes share their counts in memory. Without this, the kernel wakes every process for each
connection, and the first to accept gets it. In a burst that is the same process again and again,
while its neighbour still wakes up; and connections are kept for long, so the imbalance would last.
"""

import asyncio
import contextlib
import mmap
import socket
import struct
import time
from collections.abc import Callable, Sequence
from logging import Logger
from typing import Final

from agentauth.environment import number

# How long a connection is left to processes that have fewer (s), and how often to check whether one
# accepted it.
_YIELD_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 0.002
# For every _LONG_LINE accepted without a pause, a turn of the loop accepts one more, up to
# MOST_AT_A_TURN.
_LONG_LINE: Final = 16
MOST_AT_A_TURN: Final = 64
# Pause (s) when file descriptors or memory run out, until other connections are closed.
_REST_SECONDS: Final = 0.5
# A process that has not reported for this long (s) counts as gone.
HEARD_SECONDS: Final = 2.0
# Time of the report (monotonic clock, which all processes of a host share), and the number of
# connections.
_REPORT: Final = struct.Struct("dI4x")


class ConnectionCounts:
    """Connection counts in shared memory, created before the fork.

    A place is the number of a process, and only that process writes it. `processes`: how many
    serve; twice as many may exist at once, since some are ending. Processes are numbered as they
    start, so places are reused.
    """

    def __init__(self, processes: int) -> None:
        self._places = 2 * processes
        self._memory = mmap.mmap(-1, self._places * _REPORT.size)

    def report(self, place: int, count: int) -> None:
        """Report the count. A process that does not report for HEARD_SECONDS counts as gone."""
        _REPORT.pack_into(
            self._memory, place % self._places * _REPORT.size, time.monotonic(), count
        )

    def leave(self, place: int) -> None:
        """The process at this place accepts no more connections."""
        _REPORT.pack_into(self._memory, place % self._places * _REPORT.size, 0.0, 0)

    def has_fewest(self, place: int, count: int) -> bool:
        """Whether no other process has fewer than `count` connections."""
        since = time.monotonic() - HEARD_SECONDS
        others = enumerate(_REPORT.iter_unpack(self._memory))
        return all(
            own == place % self._places or reported_at < since or has >= count
            for own, (reported_at, has) in others
        )


# Made here, since a server's processes are forked after this module is loaded.
_COUNTS: Final = ConnectionCounts(number("WEB_CONCURRENCY", 2, least=1, most=512))


class Acceptor:
    """Accepts connections on the sockets that all processes share. One per process, in its loop.

    `place`: the process's number. `connection_factory` creates a connection's protocol. `counts`
    returns how many connections there are.
    """

    def __init__(
        self,
        place: int,
        sockets: Sequence[socket.socket],
        *,
        loop: asyncio.AbstractEventLoop,
        connection_factory: Callable[[], asyncio.Protocol],
        counts: Callable[[], int],
        log: Logger,
    ) -> None:
        self._place, self._sockets, self._loop, self._log = place, sockets, loop, log
        self._connection_factory, self._counts = connection_factory, counts
        self._connecting: set[asyncio.Task[None]] = set()
        self._open, self._in_a_row = True, 0

    def listen(self, backlog: int) -> None:
        """Begin. The kernel queues at most `backlog` connections until they are accepted."""
        for each in self._sockets:
            each.listen(backlog)
            each.settimeout(0)
            self._watch(each)

    def report(self) -> None:
        """Report the number of connections. Call it whenever that changes, and twice a second."""
        if self._open:
            _COUNTS.report(self._place, self._count())

    async def close(self) -> None:
        """Accept the queued connections, then stop: the kernel would reset the rest."""
        self._open = False
        _COUNTS.leave(self._place)
        accepted = []
        for each in self._sockets:
            self._loop.remove_reader(each)
            # The queue is empty; or file descriptors ran out, and accepted clients still get their
            # answers.
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(each.accept()[0])
            # Once no process has it open, the kernel refuses new clients, which may try another
            # server. No `await` before this: a client answered meanwhile would reconnect into the
            # queue and be reset.
            each.close()
        for one in accepted:
            await self._connect(one)
        await asyncio.gather(*self._connecting)

    def _watch(self, listening: socket.socket) -> None:
        self._loop.add_reader(listening, self._accept_if_least_loaded, listening)

    def _count(self) -> int:
        return self._counts() + len(self._connecting)

    def _accept_if_least_loaded(self, listening: socket.socket, waited: float = 0) -> None:
        """A connection waits: the least-loaded process accepts it; after a moment, any."""
        if not self._open:
            return
        self._loop.remove_reader(listening)
        if waited < _YIELD_SECONDS and not _COUNTS.has_fewest(self._place, self._count()):
            self._loop.call_later(
                _LOOK_SECONDS, self._accept_if_least_loaded, listening, waited + _LOOK_SECONDS
            )
            return
        try:
            self._take_in(listening)
        except (BlockingIOError, ConnectionAbortedError):
            # The queue is empty, another process was first, or the client has gone.
            self._in_a_row = 0
            self._watch(listening)
        except OSError:
            self._log.exception("cannot accept connections")
            self._loop.call_later(_REST_SECONDS, self._accept_if_least_loaded, listening)
        else:
            self._watch(listening)
        self.report()

    def _take_in(self, listening: socket.socket) -> None:
        """Accept one, more if the queue is long: a busy loop has few turns; refusals must be quick.

        Not many at once from the start, since the counts of the others are a moment old.
        """
        for _ in range(min(1 + self._in_a_row // _LONG_LINE, MOST_AT_A_TURN)):
            accepted, _address = listening.accept()
            self._in_a_row += 1
            self._connecting.add(task := self._loop.create_task(self._connect(accepted)))
            task.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._connection_factory, accepted)
        except OSError:
            # The client has gone already.
            accepted.close()
