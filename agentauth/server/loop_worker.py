"""gunicorn's ASGI worker with our own connections: the application only ever sees whole requests.

What it changes and why: docs/adr/0012-whole-requests-for-the-loop.md. gunicorn still parses
requests; answers leave through agentauth/server/asgi_exchange.py.
"""

import asyncio
import os
import sys
import time
from typing import Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.asgi.protocol import HIGH_WATER_LIMIT, ASGIProtocol, FlowControl
from gunicorn.workers.gasgi import ASGIWorker

from agentauth.server.asgi_exchange import Exchange, Head
from agentauth.server.connection_balancing import Acceptor
from agentauth.server.request_framing import (
    LINGER_SECONDS,
    MAX_HELD_BYTES,
    REQUEST_SECONDS,
    Incoming,
)

# How long (s) a replacement that could not start waits before it exits and the next one tries.
_AGAIN_SECONDS: Final = 1
_SWEEP_SECONDS: Final = 0.5
# The longest head kept for the connection's next request (bytes).
_MOST_KEPT_BYTES: Final = 8_192
# Run a new task at once, without a turn of the loop. Python 3.11 cannot.
_AT_ONCE: Final[dict[str, Any]] = {"eager_start": True} if sys.version_info >= (3, 12) else {}
# How much is buffered behind a request that is being answered (bytes); then reading pauses.
_MAX_BEHIND_BYTES: Final = 65_536


class Connection(ASGIProtocol):  # type: ignore[misc]  # gunicorn has no types
    """One connection: it collects a request, has it answered, and only then looks at the next.

    It is in `worker.waiting` while the client has to act: send (the rest of) a request, or hang up.
    """

    def __init__(self, worker: "Worker") -> None:
        super().__init__(worker)
        # gunicorn's own attributes: two of the current request, and the connection's parser.
        self._current_request: Any = None
        self._body_receiver: Any = None
        self._callback_parser: Any = None
        self.incoming = Incoming()
        # The head of the previous request, in case the next one repeats it.
        self._head: Head | None = None
        self._gone = asyncio.Event()
        self.lingers = False
        self.half_closed = False
        # Bytes it holds in this process, and since when the client does not read our answer
        # (monotonic, s).
        self.held = 0
        self.stuck_since: float | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = self.writer = transport
        # Read once: each look is a system call.
        self.ends = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._flow_control = FlowControl(transport)
        transport.set_write_buffer_limits(high=HIGH_WATER_LIMIT)
        self._setup_callback_parser()
        self.worker.nr_conns += 1
        self.worker.acceptor.report()
        self.worker.wait_for(self)
        self.worker.make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._gone.set()
        self.worker.acceptor.report()
        self.worker.forget(self)
        self.hold(-self.held)
        # Wake an answer that waits in `drain`: there is no client left to read it.
        self._flow_control.resume_writing()
        # Break the reference cycles: otherwise the connection and all it received stay in memory
        # until the next garbage collection.
        self._callback_parser = self._body_receiver = self._head = None
        self.incoming.start(b"")

    def data_received(self, data: bytes) -> None:
        incoming = self.incoming
        if self._closed:
            return
        if self._head is not None and not incoming.data and not self.is_answering:
            head = self._head.of(data)
            if head is not None:
                self.hold(len(data))
                self._begin(head, data[len(head.raw) :], **_AT_ONCE)
                return
        if not incoming.data and not self.is_answering:
            # The next request of a kept-alive connection begins.
            incoming.start(b"")
            self.worker.wait_for(self)
        incoming.data += data
        self.hold(len(data))
        if not self.is_answering and not self._closed:
            self._receive()
        elif len(incoming.data) > _MAX_BEHIND_BYTES:
            self._pause_reading()

    def eof_received(self) -> bool:
        """A client may stop sending and still get its answer. True keeps the connection."""
        self.half_closed = True
        if self.lingers:
            return False
        if self.is_answering:
            return True
        self._cut_short()
        return False

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stuck_since = time.monotonic()
        self.worker.stuck.add(self)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.worker.stuck.discard(self)

    @property
    def is_answering(self) -> bool:
        return self._current_request is not None

    def hold(self, count: int) -> None:
        self.held += count
        self.worker.hold(count)

    def _receive(self) -> None:
        incoming = self.incoming
        if not incoming.is_whole():
            if not incoming.wanted and len(incoming.data) > self.worker.max_head:
                self.refuse("431 Request Header Fields Too Large")
            elif self.half_closed:
                self._cut_short()
            elif incoming.expects:
                incoming.expects = False
                self._safe_write(b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        whole = bytes(incoming.data[: incoming.wanted])
        del incoming.data[: incoming.wanted]
        head = self._read(whole)
        if head is not None:
            self._begin(head, whole[len(head.raw) :])

    def _read(self, whole: bytes) -> Head | None:
        """The head of a whole request; None if it was refused."""
        if not self._feed_callback_parser(whole):
            return None
        request: Any = self._current_request
        if request is None:
            # We found the end of a head and the parser did not.
            self.refuse("400 Bad Request")
            return None
        incoming = self.incoming
        if not self._body_receiver._complete:  # noqa: SLF001  # gunicorn keeps it there
            # The body is refused for its length, or chunked: none of it is here. Make this request
            # the last: else body bytes could be read as the next one (request smuggling).
            incoming.last = True
        head = Head(
            whole[: incoming.head],
            incoming.wanted - incoming.head,
            self._build_http_scope(request, *self.ends),
            version=request.version,
            keeps=not (incoming.last or request.should_close()),
        )
        # The last request's head is not needed again; a long one would hold memory while the
        # connection idles.
        self._head = head if head.keeps and len(head.raw) <= _MOST_KEPT_BYTES else None
        self._callback_parser.reset()
        self._body_receiver = None
        return head

    def _begin(self, head: Head, body: bytes, **how: Any) -> None:
        """Answer it. _AT_ONCE only if nothing is pipelined behind it: else the calls would nest."""
        self._current_request = head
        self.worker.forget(self)
        self._task = asyncio.Task(self._answer(head, body), loop=self.worker.loop, **how)

    def _cut_short(self) -> None:
        """The client stopped mid-request: 400 if the head was whole, else just hang up."""
        if self.incoming.wanted:
            self.refuse("400 Bad Request")
        else:
            self._close_transport()

    async def _answer(self, head: Head, body: bytes) -> None:
        # The client may have left before this task ran.
        keeps = not self._closed and await self._exchange(head, body)
        if self._closed:
            return
        left = bytes(self.incoming.data)
        if not keeps or (self.half_closed and not left):
            self._close_transport()
            return
        self._current_request = None
        self.incoming.start(left)
        self.hold(len(left) - self.held)
        if not left:
            self.incoming.patience = self._keepalive
        self._resume_reading()
        self.worker.wait_for(self)
        if left:
            self._receive()

    async def _exchange(self, head: Head, body: bytes) -> bool:
        """Call the application. Returns whether the connection may be kept."""
        self.worker.count()
        exchange = Exchange(
            head, body, self.transport, may_keep=self.worker.may_keep, gone=self._gone
        )
        try:
            await self.app(head.scope, exchange.receive, exchange.send)
        except Exception:
            self.log.exception("Error in ASGI application")
        if not exchange.answered:
            if not self._closed:
                self._send_error_response(500, "Internal Server Error")
            return False
        if self._flow_control.write_paused:
            await self._flow_control.drain()
        return exchange.keeps

    def refuse(self, status: str) -> None:
        self._safe_write(
            f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
        )
        self._close_transport()

    def drop(self) -> None:
        self._closed = True
        self._gone.set()
        self.worker.forget(self)
        self.hold(-self.held)
        self.transport.abort()

    def _close_transport(self) -> None:
        """Hang up, but read on a while: unread bytes would reset the connection, losing the answer.

        Replaces gunicorn's, which closes at once. gunicorn's own code calls it on a malformed
        request.
        """
        if self.lingers or self._conn_lost_handled:
            return
        self._closed = self.lingers = True
        self.hold(-self.held)
        self.incoming.start(b"")
        self.incoming.patience = LINGER_SECONDS
        if self.half_closed:
            self.transport.close()
        else:
            self.transport.write_eof()
            self._resume_reading()
        self.worker.wait_for(self)

    def look(self, now: float, stopped_at: float) -> None:
        """Close the connection if the client's time is up at `now`.

        `stopped_at`: when the process began to stop; infinity while it runs.
        """
        incoming = self.incoming
        patience = incoming.patience
        if self.lingers and self.transport.get_write_buffer_size():
            patience = REQUEST_SECONDS
        if (
            not incoming.data
            and not self.lingers
            and now - max(incoming.begun, stopped_at) > LINGER_SECONDS
        ):
            # A stopping server does not wait for connections that sent nothing.
            self.drop()
        elif now - incoming.begun <= patience:
            return
        elif incoming.data:
            self.refuse("408 Request Timeout")
        else:
            self.drop()


class Worker(ASGIWorker):  # type: ignore[misc]
    """Bounds the connections and memory of a process: those waited for longest are closed first."""

    # gunicorn's own; False once the process is to stop.
    alive: bool

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # gunicorn caches on the calling class whether its parser is there, but reads
        # ASGIProtocol's: ask that one.
        ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001  # see above
        cfg = self.cfg
        self.max_head = (
            cfg.limit_request_line
            + cfg.limit_request_fields * (cfg.limit_request_field_size + 2)
            + 4
        )
        # Ordered by when the wait for them began.
        self.waiting: dict[Connection, None] = {}
        self.stuck: set[Connection] = set()
        self.held = 0
        self._stopped_at = float("inf")

    @classmethod
    def check_config(cls, cfg: Any, log: Any) -> None:
        super().check_config(cfg, log)
        if cfg.is_ssl:
            # A TLS handshake comes before our connection exists, so no deadline would bound it.
            raise RuntimeError(
                "The verifier serves plain HTTP: configure the certificate at the proxy in front "
                "of it."
            )

    def count(self) -> None:
        """Count a request; after `max_requests` the process stops."""
        self.nr += 1
        if self.nr >= self.max_requests:
            self.alive = False

    def may_keep(self) -> bool:
        """Whether connections are kept alive: not while the process stops."""
        return self.alive

    def wait_for(self, connection: Connection) -> None:
        self.waiting.pop(connection, None)
        self.waiting[connection] = None

    def make_room(self) -> None:
        if self.nr_conns > self.worker_connections:
            # First those that have their answer, then those that still want one.
            had = (each for each in self.waiting if each.lingers)
            next(had, next(iter(self.waiting))).drop()

    def forget(self, connection: Connection) -> None:
        self.waiting.pop(connection, None)
        self.stuck.discard(connection)

    def hold(self, count: int) -> None:
        self.held += count
        if self.held > MAX_HELD_BYTES and count > 0:
            first = next((each for each in self.waiting if each.held), None)
            if first is not None:
                first.drop()

    def create_acceptor(self) -> Acceptor:
        """What accepts this process's connections."""
        return Acceptor(
            self.age,
            [listener.sock for listener in self.sockets],
            loop=self.loop,
            connection_factory=lambda: Connection(self),
            counts=lambda: self.nr_conns,
            log=self.log.error_log,
        )

    async def _serve(self) -> None:
        """As gunicorn's, with our connections and backlog; the application must say it began."""
        self.lifespan = LifespanManager(self.asgi, self.log, self.state)
        try:
            await self.lifespan.startup()
        except Exception as error:
            # The application has logged why.
            self.log.error("the application did not start: %s", error)  # noqa: TRY400
            # If one of the first processes cannot start, the server stops. A replacement tries
            # again: while the database is away, the remaining processes go on.
            is_first = self.age <= self.cfg.workers
            await asyncio.sleep(0 if is_first else _AGAIN_SECONDS)
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR if is_first else 1) from error
        self.acceptor = self.create_acceptor()
        self.acceptor.listen(self.cfg.backlog)
        self._sweep()
        while self.alive and self.ppid == os.getppid():
            self.notify()
            await asyncio.sleep(_SWEEP_SECONDS)
        self.alive = False
        await self.acceptor.close()
        await self._shutdown()

    def _sweep(self) -> None:
        now = time.monotonic()
        self.acceptor.report()
        if not self.alive and self._stopped_at > now:
            self._stopped_at = now
        for connection in list(self.waiting):
            connection.look(now, self._stopped_at)
        for connection in list(self.stuck):
            if (
                connection.stuck_since is not None
                and now - connection.stuck_since > REQUEST_SECONDS
            ):
                connection.drop()
        self.loop.call_later(_SWEEP_SECONDS, self._sweep)
