"""A forward proxy for tests (RFC 9110, CONNECT): gives tests host names without a name server."""

import contextlib
import socket
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def connect_proxy(port: int) -> Iterator[str]:
    """Its URL. Whatever host is requested, it connects to `port` of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, port), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket, port: int) -> None:
    with contextlib.suppress(OSError):
        while True:
            line, _ = server.accept()
            threading.Thread(target=_tunnel, args=(line, port), daemon=True).start()


def _tunnel(line: socket.socket, port: int) -> None:
    with line, contextlib.suppress(OSError):
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += line.recv(1)
        with socket.create_connection(("127.0.0.1", port)) as there:
            line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_copy, args=(there, line), daemon=True)
            back.start()
            _copy(line, there)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(65_536):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_WR)
