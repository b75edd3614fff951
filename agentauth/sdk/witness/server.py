"""The witness over HTTP: a small server with limits on threads, time and bytes.

Its answers are decided elsewhere.
"""

import io
import socket
import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Final

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.signed_notes import MAX_NOTE_BYTES
from agentauth.sdk.stderr_output import print_stderr

from .cosigning import Witness, WitnessAnswer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

# Seconds for a whole request, and for the idle time before the next one on its connection.
REQUEST_SECONDS: Final = 10.0
MAX_CONNECTIONS: Final = 64
_ADD_CHECKPOINT: Final = "/add-checkpoint"
_CHECKPOINT: Final = "/checkpoint"
_DIGITS: Final = frozenset("0123456789")


class WitnessServer(ThreadingHTTPServer):
    """Listens once constructed; `serve_forever` answers.

    Connections beyond MAX_CONNECTIONS are closed at once.
    """

    daemon_threads = True
    request_queue_size = MAX_CONNECTIONS

    def __init__(
        self, address: tuple[str, int], witness: Witness, *, seconds: float = REQUEST_SECONDS
    ) -> None:
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        self.witness, self.seconds = witness, seconds
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    @property
    def url(self) -> str:
        """The address it listens on, as a submission prefix."""
        host, port = self.server_address[:2]
        name = str(host)
        return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()


class _Patience(io.RawIOBase):
    """Reads a connection until a deadline: a client that sends byte by byte cannot hold a thread
    longer.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self.until = 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        left = self.until - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection.recv_into(buffer)


class _Handler(BaseHTTPRequestHandler):
    server: WitnessServer
    protocol_version = "HTTP/1.1"
    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"
    disable_nagle_algorithm = True

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self._patience = _Patience(self.connection)
        self.rfile = io.BufferedReader(self._patience)

    def handle_one_request(self) -> None:
        self._patience.until = time.monotonic() + self.server.seconds
        try:
            super().handle_one_request()
        except ConnectionError:
            self.close_connection = True

    def do_POST(self) -> None:
        if self.path != _ADD_CHECKPOINT:
            self._end(HTTPStatus.NOT_FOUND)
            return
        body = self._body()
        if body is not None:
            self._answer(lambda: self.server.witness.add_checkpoint(body, now=int(time.time())))

    def do_GET(self) -> None:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            # An unread body would be parsed as the next request.
            self._end(HTTPStatus.BAD_REQUEST)
        elif self.path == _ADD_CHECKPOINT:
            self._end(HTTPStatus.METHOD_NOT_ALLOWED)
        elif self.path.endswith(_CHECKPOINT):
            self._answer(
                lambda: self.server.witness.checkpoint(
                    self.path.removesuffix(_CHECKPOINT).removeprefix("/")
                )
            )
        else:
            self._end(HTTPStatus.NOT_FOUND)

    def _body(self) -> bytes | None:
        """The body, by its only Content-Length; None after an error was sent.

        With two lengths, a proxy and this server could disagree on where the next request begins.
        """
        lengths = self.headers.get_all("Content-Length", [])
        if self.headers.get_all("Transfer-Encoding") or len(lengths) != 1:
            self._end(HTTPStatus.LENGTH_REQUIRED)
            return None
        if not lengths[0] or not _DIGITS.issuperset(lengths[0]):
            self._end(HTTPStatus.BAD_REQUEST)
            return None
        if len(lengths[0]) > len(str(MAX_NOTE_BYTES)) or int(lengths[0]) > MAX_NOTE_BYTES:
            self._end(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return None
        body = self.rfile.read(int(lengths[0]))
        if len(body) < int(lengths[0]):
            self.close_connection = True
            return None
        return body

    def _answer(self, make: Callable[[], WitnessAnswer]) -> None:
        try:
            answer = make()
        except AgentAuthError as error:
            # Show the operator the cause: a full disk, a file that was moved away.
            print_stderr(f"{error.description} {error.__cause__}")
            answer = WitnessAnswer(HTTPStatus.SERVICE_UNAVAILABLE, f"{error.description}\n")
        content = answer.body.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _end(self, status: HTTPStatus) -> None:
        """Send an error and close: what follows could be the unread body."""
        self.close_connection = True
        self.send_error(status)

    def version_string(self) -> str:
        return "witness"
