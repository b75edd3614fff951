"""A server on a plain socket that answers every request with bytes of a test's choice, right or
wrong.
"""

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

# A client without a limit does reach the end of an answer, so its test fails instead of never
# ending.
DRIPS: Final = 100
DRIP_SECONDS: Final = 0.05
ENDLESS_BYTES: Final = 64 * 1024 * 1024
_LENGTH: Final = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")

Sending = Callable[[socket.socket], None]


@dataclass
class HostileServer:
    """`send` writes each answer. `heads` are the request heads it was sent."""

    url: str
    send: Sending
    tls: ssl.SSLContext | None = None
    heads: list[bytes] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)


def answer(body: bytes, *headers: str, status: int = 200) -> bytes:
    """One whole answer; `headers` are lines."""
    lines = [
        f"HTTP/1.1 {status} Said",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + body


def whole(raw: bytes) -> Sending:
    return lambda connection: connection.sendall(raw)


def endless(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    for _ in range(ENDLESS_BYTES // 65_536):
        connection.sendall(b" " * 65_536)


def dripping(before: bytes, drip: bytes, after: bytes) -> Sending:
    """`drip` again and again between two parts of an answer."""

    def send(connection: socket.socket) -> None:
        connection.sendall(before)
        for _ in range(DRIPS):
            connection.sendall(drip)
            threading.Event().wait(DRIP_SECONDS)
        connection.sendall(after)

    return send


@contextlib.contextmanager
def serving(send: Sending, tls: ssl.SSLContext | None = None) -> Iterator[HostileServer]:
    """The server, on a free port of 127.0.0.1."""
    listener = socket.create_server(("127.0.0.1", 0))
    scheme = "https" if tls else "http"
    server = HostileServer(f"{scheme}://localhost:{listener.getsockname()[1]}", send, tls)
    accepting = threading.Thread(target=_accept, args=(listener, server), daemon=True)
    accepting.start()
    try:
        yield server
    finally:
        server.stopped.set()
        # Wakes the thread that accepts.
        socket.create_connection(listener.getsockname()).close()
        accepting.join()
        listener.close()


def _accept(listener: socket.socket, server: HostileServer) -> None:
    while True:
        connection, _ = listener.accept()
        if server.stopped.is_set():
            connection.close()
            return
        threading.Thread(target=_answer, args=(connection, server), daemon=True).start()


def _answer(accepted: socket.socket, server: HostileServer) -> None:
    with contextlib.ExitStack() as opened:
        try:
            connection = opened.enter_context(accepted)
            if server.tls is not None:
                connection = opened.enter_context(
                    server.tls.wrap_socket(accepted, server_side=True)
                )
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65_536)
            head, body = received.split(b"\r\n\r\n", 1)
            length = _LENGTH.search(head)
            while len(body) < int(length[1] if length else 0):
                body += connection.recv(65_536)
            server.heads.append(head)
            server.send(connection)
        except OSError:
            # The client has hung up.
            return
