"""Taking connections in, so that each goes to the process that has fewest: they tell each other in memory that they share.

The system wakes every process for each connection, and the first to ask gets it. When many come at once that is one process
again and again, while its neighbour is still waking up; connections are kept for long, and so would be the difference.
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

# How long a connection is left to the processes that have fewer, and how often to look whether they took it.
_YIELD_SECONDS: Final = 0.02
_LOOK_SECONDS: Final = 0.002
# After so many without a pause one more is taken in at each turn of the loop, up to the most.
_LONG_LINE: Final = 16
MOST_AT_A_TURN: Final = 64
# Without files or memory nothing can be taken; what is open may be closed in a while.
_REST_SECONDS: Final = 0.5
# Whoever said nothing for so long counts as gone.
HEARD_SECONDS: Final = 2.0
# Processes are numbered as they are started; this many may be there at once, those that end included.
_PLACES: Final = 64
# When it was told, by the monotonic clock, which all processes of a host share; how many.
_TOLD: Final = struct.Struct("dI4x")


class Shares:
    """Made before the processes are forked. A place is the number of a process; of its own, each tells alone."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _PLACES * _TOLD.size)

    def tell(self, place: int, count: int) -> None:
        """The process of this place has so many connections now. Not to be told for HEARD_SECONDS is to be gone."""
        _TOLD.pack_into(self._memory, place % _PLACES * _TOLD.size, time.monotonic(), count)

    def leave(self, place: int) -> None:
        """The process of this place takes no more."""
        _TOLD.pack_into(self._memory, place % _PLACES * _TOLD.size, 0.0, 0)

    def has_fewest(self, place: int, count: int) -> bool:
        """Whether no other process has fewer than `count` connections."""
        since = time.monotonic() - HEARD_SECONDS
        others = enumerate(_TOLD.iter_unpack(self._memory))
        return all(own == place % _PLACES or told < since or has >= count for own, (told, has) in others)


# Made here, since a server's processes are forked after this module is loaded.
_SHARES: Final = Shares()


class Door:
    """Takes connections from the sockets that all processes listen at, while it is open. Of one process, in its loop.

    `place` is the process's number, `made` makes the protocol of a connection, `counts` how many there are.
    """

    def __init__(
        self,
        place: int,
        sockets: Sequence[socket.socket],
        *,
        loop: asyncio.AbstractEventLoop,
        made: Callable[[], asyncio.Protocol],
        counts: Callable[[], int],
        log: Logger,
    ) -> None:
        self._place, self._sockets, self._loop, self._log = place, sockets, loop, log
        self._made, self._counts = made, counts
        self._coming: set[asyncio.Task[None]] = set()
        self._open, self._in_a_row = True, 0

    def listen(self, backlog: int) -> None:
        """Begin. What comes while nobody takes it waits in the system, at most `backlog` of it."""
        for each in self._sockets:
            each.listen(backlog)
            each.settimeout(0)
            self._watch(each)

    def tell(self) -> None:
        """Say how many connections there are; whenever they change, and twice a second."""
        if self._open:
            _SHARES.tell(self._place, self._count())

    async def close(self) -> None:
        """Take in who is connected already, and then nobody: what the system accepted for us and we never read would be reset."""
        self._open = False
        _SHARES.leave(self._place)
        accepted = []
        for each in self._sockets:
            self._loop.remove_reader(each)
            # Nobody is left; or without files there is no taking in, and those who have an answer to come still get it.
            with contextlib.suppress(OSError):
                while True:
                    accepted.append(each.accept()[0])
            # Once no process has it open, whoever comes is refused by the system and may ask elsewhere. In one go: whoever is
            # answered in between comes again, and might be in the system's queue as it goes.
            each.close()
        for one in accepted:
            await self._connect(one)
        await asyncio.gather(*self._coming)

    def _watch(self, listening: socket.socket) -> None:
        self._loop.add_reader(listening, self._offered, listening)

    def _count(self) -> int:
        return self._counts() + len(self._coming)

    def _offered(self, listening: socket.socket, waited: float = 0) -> None:
        """Somebody connects, and every process is told: who has fewest connections takes it, or another, after a moment."""
        if not self._open:
            return
        self._loop.remove_reader(listening)
        if waited < _YIELD_SECONDS and not _SHARES.has_fewest(self._place, self._count()):
            self._loop.call_later(_LOOK_SECONDS, self._offered, listening, waited + _LOOK_SECONDS)
            return
        try:
            self._take_in(listening)
        except (BlockingIOError, ConnectionAbortedError):
            # That was all, or another process was first, or whoever it was has gone.
            self._in_a_row = 0
            self._watch(listening)
        except OSError:
            self._log.exception("no connection can be taken")
            self._loop.call_later(_REST_SECONDS, self._offered, listening)
        else:
            self._watch(listening)
        self.tell()

    def _take_in(self, listening: socket.socket) -> None:
        """One, or more at a turn the longer the line is: a busy loop has few turns, and who comes to be refused must not wait long.

        Not many at once from the first: what the others told of themselves is a moment old.
        """
        for _ in range(min(1 + self._in_a_row // _LONG_LINE, MOST_AT_A_TURN)):
            accepted, _address = listening.accept()
            self._in_a_row += 1
            self._coming.add(task := self._loop.create_task(self._connect(accepted)))
            task.add_done_callback(self._coming.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            if accepted.family != socket.AF_UNIX:
                accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(self._made, accepted)
        except OSError:
            # Gone already.
            accepted.close()
