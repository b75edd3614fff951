"""An open-loop client: a call's latency counts from when it is due, whether it is sent late or not.

One epoll loop with bare sockets, since the load generator shares the machine with what it measures.
"""

import gc
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from benchmarks.load_generation import TIMEOUT_SECONDS, VALID, Tally

_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_READ_BYTES = 262_144
# (when the call was due, when its answer arrived (perf_counter), head, body)
Told = Callable[[float, float, bytes, bytes], None]


@dataclass(slots=True)
class _Connection:
    """A kept-open connection with at most one call in progress, which was `due` at that time."""

    socket: socket.socket
    due: float = 0.0
    received: bytes = b""


@dataclass(slots=True)
class _Counts:
    sent: int = 0
    not_2xx: int = 0
    wrong: int = 0
    errors: int = 0
    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)


def open_loop(
    url: str,
    requests: list[bytes],
    *,
    rate: float | None,
    batch: int,
    connections: int,
    tell: Told | None = None,
) -> tuple[Tally, float]:
    """Send each request once, `rate` calls a second; a due call without a free connection waits for
    one.

    With no rate each connection sends its next call as soon as it is free, and that is when it is
    due.

    `tell` gets each answer, and has to be quick: nothing is sent meanwhile.

    Returns the tally, and how late the client itself sent although a connection was free (p99, ms):
    that part of the latencies is its own.
    """
    loop = _Loop(url, batch, connections, tell)
    gc.disable()
    try:
        seconds = loop.run(requests, rate)
    finally:
        gc.enable()
        loop.close()
    counts = loop.counts
    times = sorted(counts.latencies)
    tally = Tally(
        sent=counts.sent,
        answered=len(times),
        not_2xx=counts.not_2xx,
        wrong=counts.wrong,
        errors=counts.errors,
        seconds=seconds,
        p50_ms=percentile(times, 50),
        p99_ms=percentile(times, 99),
        p999_ms=percentile(times, 99.9),
    )
    return tally, percentile(sorted(counts.late), 99)


def percentile(ordered: list[float], percent: float) -> float:
    """In ms, of sorted seconds; 0 if there are none."""
    return (
        ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] * 1000 if ordered else 0.0
    )


class _Loop:
    def __init__(self, url: str, batch: int, connections: int, tell: Told | None = None) -> None:
        address = urlsplit(url)
        self.address = ("127.0.0.1", address.port or 80)
        self.batch, self.expected, self.tell = batch, VALID.encode(), tell
        self.counts = _Counts()
        self.epoll = select.epoll()
        self.all: dict[int, _Connection] = {}
        # First in, first out: all connections, and so all server processes, are used.
        self.free: deque[_Connection] = deque()
        # When the last call that found none free could have been sent.
        self.freed_at = 0.0
        for _ in range(connections):
            self.connect()

    def connect(self) -> None:
        made = socket.create_connection(self.address, timeout=TIMEOUT_SECONDS)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = _Connection(made)
        self.all[made.fileno()] = connection
        self.epoll.register(made.fileno(), select.EPOLLIN)
        self.free.append(connection)

    def close(self) -> None:
        for connection in self.all.values():
            connection.socket.close()
        self.epoll.close()

    def run(self, requests: list[bytes], rate: float | None) -> float:
        """Seconds from the first due time to the last answer."""
        began = time.perf_counter()
        last = began
        following, total = 0, len(requests)
        while following < total or len(self.free) < len(self.all):
            now = time.perf_counter()
            while following < total and self.free:
                due = now if rate is None else began + following / rate
                if due > now:
                    break
                self.send(requests[following], due, now)
                following += 1
            due = now + TIMEOUT_SECONDS
            if rate is not None and following < total and self.free:
                due = began + following / rate
            # select can wait for less than a millisecond; epoll then names the connections.
            if select.select([self.epoll], [], [], max(0.0, due - time.perf_counter()))[0]:
                for number, _ in self.epoll.poll(0):
                    self.receive(self.all[number])
                last = time.perf_counter()
            elif due == now + TIMEOUT_SECONDS:
                self.counts.errors += len(self.all) - len(self.free)
                break
        return last - began

    def send(self, request: bytes, due: float, now: float) -> None:
        connection = self.free.popleft()
        connection.due, connection.received = due, b""
        self.counts.sent += 1
        self.counts.late.append(now - max(due, self.freed_at))
        try:
            connection.socket.sendall(request)
        except OSError:
            self.broken(connection)

    def receive(self, connection: _Connection) -> None:
        try:
            data = connection.socket.recv(_READ_BYTES)
        except OSError:
            data = b""
        if not data:
            self.broken(connection)
            return
        connection.received += data
        answer = connection.received
        head, end, body = answer.partition(_END)
        if not end or len(body) < _length(head):
            return
        now = time.perf_counter()
        self.counts.latencies.append(now - connection.due)
        if self.tell:
            self.tell(connection.due, now, head, body)
        if not self.free:
            self.freed_at = now
        if not head.startswith(b"HTTP/1.1 2"):
            self.counts.not_2xx += 1
        else:
            self.counts.wrong += abs(self.batch - body.count(self.expected))
        self.free.append(connection)

    def broken(self, connection: _Connection) -> None:
        """The other side closed the connection: its call is lost, a new connection replaces it."""
        if connection in self.free:
            self.free.remove(connection)
        else:
            self.counts.errors += 1
        number = connection.socket.fileno()
        self.epoll.unregister(number)
        del self.all[number]
        connection.socket.close()
        self.connect()


def _length(head: bytes) -> int:
    """The body's length. Raises ValueError for an answer without it."""
    return int(head[head.lower().index(_LENGTH) + len(_LENGTH) :].split(b"\r\n", 1)[0])
