"""A real receiver of webhooks on loopback, over http or https."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path

from tests.http_server import Quiet, serving


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

    class Handler(Quiet):
        def do_POST(self) -> None:
            box.received.append((self.path, self.headers, self.body()))
            status = box.statuses.pop(0) if box.statuses else 204
            self.say(status, box.answer, {"Location": box.location} if box.location else {})

        do_GET = do_POST  # noqa: N815 — a followed redirect would come as a GET

    tls = None
    if directory is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(directory / "proxy.crt", directory / "proxy.key")
    with serving(Handler, tls) as url:
        box.port = int(url.rpartition(":")[2])
        yield box
