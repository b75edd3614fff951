"""A fake Vault that answers as a test says, like a faulty or malicious key service."""

import base64
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agentauth.protocol.keys import PrivateKey

URI = "vault:transit/agentauth-token-00000000-0000-7000-8000-000000000000"
KEY = PrivateKey.generate("EdDSA")
PUBLIC = base64.b64encode(base64.urlsafe_b64decode(KEY.public.jwk["x"] + "=")).decode()
GOOD: dict[str, Any] = {
    "type": "ed25519",
    "exportable": False,
    "allow_plaintext_backup": False,
    "keys": {"1": {"public_key": PUBLIC}},
}


def encode_signature(signature: bytes, version: int = 1) -> str:
    return f"vault:v{version}:{base64.b64encode(signature).decode()}"


class FakeVault(BaseHTTPRequestHandler):
    """The handler of one request. A test changes its attributes and methods on a subclass."""

    key: Any = GOOD
    signature: Callable[[bytes], Any]

    def do_GET(self) -> None:
        self.answer({"data": type(self).key})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.answer({"data": {"signature": type(self).signature(base64.b64decode(body["input"]))}})

    def answer(self, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: a test's output is for the test."""


@contextlib.contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """A server on loopback; yields its URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()
