"""A gunicorn worker whose threads see whole requests: its loop receives and sends for them.

Why it is ours, and what that costs: docs/adr/0010-whole-requests-for-threads.md.
"""

import contextlib
import selectors
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from gunicorn.http import get_parser
from gunicorn.http.unreader import Unreader
from gunicorn.sock import ssl_wrap_socket
from gunicorn.workers.gthread import TConn, ThreadWorker

from agentauth.server.request_framing import (
    ANSWER_SECONDS,
    LINGER_SECONDS,
    MAX_HELD_BYTES,
    WAITED,
    Incoming,
)

if TYPE_CHECKING:
    from agentauth.flood_filter import Judged, PreauthFilter

_READ_BYTES: Final = 65_536
_SEND_BYTES: Final = 262_144
# gunicorn kills a worker that sends no heartbeat within its timeout, 30 s.
_NOTIFY_SECONDS: Final = 1.0
# How long a stopping process waits until the last refusals are recorded (s).
_STOP_SECONDS: Final = 3.0

_BLOCKED: Final = (BlockingIOError, InterruptedError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class RequestBuffer(Incoming, Unreader):  # type: ignore[misc]  # gunicorn has no types
    """Bytes of one connection that no request has taken. Reading on finds an end, never waits."""

    def __init__(self) -> None:
        Unreader.__init__(self)
        Incoming.__init__(self)
        self.watched = False
        self.size = 0
        self.rest = b""
        # When the request was complete (monotonic, s).
        self.whole_at = 0.0
        # The part of the answer that the client has not read yet.
        self.unsent = bytearray()

    def begin(self) -> None:
        """Wait for the next request, part of which may be here already."""
        self.start(self.take_buffered() + self.rest)
        self.rest = b""

    def serve(self) -> None:
        """Let a thread read it, the body apart: the parser would copy it with each line."""
        self.whole_at = time.monotonic()
        end = self.head if self.wanted > self.head else len(self.data)
        self.unread(bytes(self.data[:end]))
        self.rest = bytes(self.data[end:])
        self.data.clear()

    def skip(self) -> None:
        """Skip the whole request, so that only what follows it is read."""
        self.unread(bytes(self.data[self.wanted :]))
        self.data.clear()

    def chunk(self, size_hint: int | None = None) -> bytes:
        rest, self.rest = self.rest, b""
        self.last = self.last or not rest
        return rest


class Answering:
    """A connection as the answering thread sees it: the loop sends what is not read at once."""

    def __init__(self, sock: Any, unsent: bytearray) -> None:
        self._sock, self._unsent = sock, unsent

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def setblocking(self, *_: object) -> None:
        """Ignored: gunicorn calls it before it writes. Our threads never wait for a client."""

    def sendall(self, data: bytes) -> None:
        if not self._unsent:
            with contextlib.suppress(*_BLOCKED):
                data = data[self._sock.send(data) :]
        self._unsent += data

    def sendfile(self, file: Any, offset: int, count: int) -> None:
        file.seek(offset)
        self.sendall(file.read(count))


class Worker(ThreadWorker):  # type: ignore[misc]
    """Threads that only ever see whole requests; the loop that accepts connections receives them.

    However many clients send or read slowly, none of them occupies a thread. They have a deadline,
    and if they are too many or hold too much memory, those that began first are cut off.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.max_keepalived = self.worker_connections // 4
        cfg = self.cfg
        self._max_head = (
            cfg.limit_request_line
            + cfg.limit_request_fields * (cfg.limit_request_field_size + 2)
            + 4
        )
        # Connections the loop reads from or sends to, oldest first.
        self._receiving: dict[Any, RequestBuffer] = {}
        self._held = 0
        self._notified = float("-inf")
        self._strangers: PreauthFilter

    def run(self) -> None:
        """As gunicorn's, with the judge of strangers, created once the application is loaded."""
        # Imported here, since it needs loaded models.
        from agentauth.flood_filter import PreauthFilter

        self._strangers = PreauthFilter(lambda judged: self.method_queue.defer(self._go_on, judged))
        try:
            super().run()
        finally:
            self._strangers.stop(_STOP_SECONDS)

    def notify(self) -> None:
        """Send the master a heartbeat once a second; gunicorn would touch a file at each turn."""
        now = time.monotonic()
        if now - self._notified >= _NOTIFY_SECONDS:
            self._notified = now
            super().notify()

    def set_accept_enabled(self, enabled: bool) -> None:  # noqa: FBT001 — gunicorn's
        """As gunicorn's; but a stopping process closes its listeners before its last answer."""
        # Read once: the signal to stop may arrive in between.
        alive = self.alive
        super().set_accept_enabled(enabled and alive)
        if not alive:
            self._close_acceptor()

    def _close_acceptor(self) -> None:
        """Accept what is queued, then close the listeners: the kernel would reset the rest."""
        came: list[tuple[Any, Any, Any]] = []
        listeners: list[Any] = self.sockets
        self.sockets: list[Any] = []
        for listener in listeners:
            listener.settimeout(0)
            ours = listener.getsockname()
            while True:
                try:
                    came.append((*listener.accept(), ours))
                except ConnectionAbortedError:
                    continue
                except BlockingIOError:
                    break
                except OSError:
                    # Out of file descriptors: accept no more. Accepted clients get their answers.
                    self.log.exception("no more connections can be accepted")
                    break
            # Once no process has it open, the kernel refuses new clients, which may then try
            # another server.
            listener.close()
        for sock, client, ours in came:
            self.nr_conns += 1
            self.enqueue_req(TConn(self.cfg, sock, client, ours))

    def enqueue_req(self, conn: Any) -> None:
        """Take a new connection, or the next request of a kept one."""
        try:
            if conn.parser is None:
                if self.cfg.is_ssl:
                    conn.sock = ssl_wrap_socket(conn.sock, self.cfg)
                conn.parser = get_parser(self.cfg, conn.sock, conn.client)
                conn.parser.unreader = RequestBuffer()
                conn.data_ready = True
            conn.sock.settimeout(0)
        except (OSError, ValueError):
            self.nr_conns -= 1
            conn.close()
            return
        conn.parser.unreader.begin()
        self._hold(conn, len(conn.parser.unreader.data))
        self.receive(conn)

    def receive(self, conn: Any, _sock: Any = None) -> None:
        received = conn.parser.unreader
        try:
            while not received.is_whole():
                if not received.wanted and len(received.data) > self._max_head:
                    self.refuse(conn, "431 Request Header Fields Too Large")
                    return
                data = conn.sock.recv(_READ_BYTES)
                if not data:
                    received.last = True
                    break
                received.data += data
                self._hold(conn, len(data))
        except _BLOCKED:
            if received.expects:
                received.expects = False
                with contextlib.suppress(OSError):
                    conn.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._watch(conn, self.receive)
            return
        except OSError:
            self.drop(conn)
            return
        if not received.data:
            self.drop(conn)
            return
        self._unwatch(conn)
        self._take_in(conn)

    def _take_in(self, conn: Any) -> None:
        """Hand a whole request to a thread, unless it must be judged first as a stranger's."""
        received = conn.parser.unreader
        if received.wanted and self._strangers.concern(received.data):
            judged = self._strangers.judge(
                conn, received.data, received.head, received.wanted, peer=conn.client
            )
            self._go_on([judged])
        else:
            self._hand_on(conn)

    def _go_on(self, judged: Sequence["Judged"]) -> None:
        for each in judged:
            if each.is_refused:
                self._answer(each.whose, each)
            elif not each.waits:
                self._hand_on(each.whose)

    def _hand_on(self, conn: Any) -> None:
        conn.parser.unreader.serve()
        super().enqueue_req(conn)

    def _answer(self, conn: Any, judged: "Judged") -> None:
        """Refuse a request that no thread has seen."""
        received = conn.parser.unreader
        has_room = len(self.keepalived_conns) < self.max_keepalived
        keeps = judged.keeps and self.alive and not received.last and has_room
        received.skip()
        received.unsent += judged.answer(keeps=keeps)
        answered: Future[bool] = Future()
        answered.set_result(keeps)
        if received.buf.tell():
            # Deferred, since a request follows: answers to many in one packet would nest.
            self.method_queue.defer(self.finish_request, conn, answered)
        else:
            self.finish_request(conn, answered)

    def handle(self, conn: Any) -> bool:
        sock, received = conn.sock, conn.parser.unreader
        conn.sock = Answering(sock, received.unsent)
        WAITED.set(time.monotonic() - received.whole_at)
        try:
            return bool(super().handle(conn)) and not received.last
        finally:
            conn.sock = sock

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:  # noqa: FBT001 — gunicorn's
        """Read past a body that the application did not read; all of it is here.

        gunicorn's own gives up after 64 KiB and closes a connection that the answer has just
        promised to keep: a proxy sends the next client's request over it.
        """
        if keepalive and conn.parser.mesg:
            # In one read: `finish_body` takes 1 KiB at a time, 18 ms of CPU for 1 MiB.
            conn.parser.mesg.body.read()
        return keepalive and bool(conn.parser.finish_body())

    def finish_request(self, conn: Any, fs: Any) -> None:
        received = conn.parser.unreader
        self._hold(conn, len(received.unsent) - received.size)
        received.begun, received.patience = time.monotonic(), ANSWER_SECONDS
        self.deliver(conn, fs=fs)

    def deliver(self, conn: Any, _sock: Any = None, *, fs: Any) -> None:
        """Send the rest of the answer as far as the client reads it, then go on."""
        unsent = conn.parser.unreader.unsent
        try:
            while unsent:
                sent = conn.sock.send(bytes(unsent[:_SEND_BYTES]))
                del unsent[:sent]
                self._hold(conn, -sent)
        except _BLOCKED:
            self._watch(conn, partial(self.deliver, fs=fs), selectors.EVENT_WRITE)
            return
        except OSError:
            self.drop(conn)
            return
        self._unwatch(conn)
        if not fs.cancelled() and not fs.exception() and fs.result():
            super().finish_request(conn, fs)
        else:
            self.linger(conn)

    def refuse(self, conn: Any, status: str) -> None:
        with contextlib.suppress(OSError):
            conn.sock.send(
                f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".encode()
            )
        self.linger(conn)

    def linger(self, conn: Any) -> None:
        """Hang up, but read on a while: unread bytes would reset the connection, losing the answer.

        gunicorn does this too, but blocks its loop meanwhile: one client that does not hang up
        stops all others.
        """
        self._unwatch(conn)
        received = conn.parser.unreader
        self._hold(conn, -received.size)
        received.data.clear()
        received.begun, received.patience = time.monotonic(), LINGER_SECONDS
        try:
            conn.sock.shutdown(socket.SHUT_WR)
            conn.sock.settimeout(0)
        except OSError:
            self.drop(conn)
            return
        self._watch(conn, self.discard)

    def discard(self, conn: Any, _sock: Any) -> None:
        try:
            if conn.sock.recv(_READ_BYTES):
                return
        except _BLOCKED:
            return
        except OSError:
            pass
        self.drop(conn)

    def drop(self, conn: Any) -> None:
        self._unwatch(conn)
        self._hold(conn, -conn.parser.unreader.size)
        self.nr_conns -= 1
        conn.close()

    def wait_for_and_dispatch_events(self, timeout: float) -> None:
        super().wait_for_and_dispatch_events(timeout)
        now = time.monotonic()
        for conn, received in list(self._receiving.items()):
            # A stopping server does not wait for connections that sent nothing.
            busy = self.alive or received.data or received.unsent
            patience = received.patience if busy else LINGER_SECONDS
            if len(self._receiving) > self.worker_connections // 2 or self._held > MAX_HELD_BYTES:
                self.drop(conn)
            elif now - received.begun > patience:
                if received.data:
                    self.refuse(conn, "408 Request Timeout")
                else:
                    self.drop(conn)

    def _hold(self, conn: Any, count: int) -> None:
        conn.parser.unreader.size += count
        self._held += count

    def _watch(
        self, conn: Any, callback: Callable[[Any, Any], None], event: int = selectors.EVENT_READ
    ) -> None:
        received = conn.parser.unreader
        if not received.watched:
            received.watched = True
            self._receiving[conn] = received
            self.poller.register(conn.sock, event, partial(callback, conn))

    def _unwatch(self, conn: Any) -> None:
        if conn.parser.unreader.watched:
            conn.parser.unreader.watched = False
            del self._receiving[conn]
            self.poller.unregister(conn.sock)
