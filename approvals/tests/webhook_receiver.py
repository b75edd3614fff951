"""A real receiver of webhooks on loopback, over http or https."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


@dataclass
class Receiver:
    port: int = 0
    received: list[tuple[str, Message, bytes]] = field(default_factory=list)
    # The statuses of the next answers; after them 204.
    statuses: list[int] = field(default_factory=list)
    location: str = ""
    answer: bytes = b""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@contextmanager
def webhook_receiver(directory: Path | None = None) -> Iterator[Receiver]:
    """Receive until the context ends; with `directory`, by the certificate that is in it."""
    box = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            box.received.append((self.path, self.headers, body))
            self.send_response(box.statuses.pop(0) if box.statuses else 204)
            if box.location:
                self.send_header("Location", box.location)
            self.send_header("Content-Length", str(len(box.answer)))
            self.end_headers()
            self.wfile.write(box.answer)

        do_GET = do_POST  # noqa: N815 — a followed redirect would come as a GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        box.port = server.server_address[1]
        if directory is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(directory / "proxy.crt", directory / "proxy.key")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield box
        server.shutdown()
        thread.join()
