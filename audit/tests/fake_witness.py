"""A log, and a witness that answers what a test tells it to."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import SignatureType, Verifier
from agentauth.sdk.tests.witness_cast import NAME, Log
from audit.checkpoints.witness_client import Outcome, Witness, cosign

KEY = LocalSigner(PrivateKey.generate())
VERIFIER = Verifier(NAME, KEY.public, SignatureType.COSIGNATURE)
LOG = Log()
OTHER = LOG.other("for somebody else")


def ask(witness: Witness, size: int, old_size: int = 0, log: Log = LOG) -> Outcome:
    return cosign(log.note(size), witness=witness, old_size=old_size, consistency=log.path)


class Fake:
    """Answers each request with the next of the given texts, unchanged; repeats the last one."""

    def __init__(self, answers: tuple[bytes, ...]) -> None:
        self.heard: list[bytes] = []
        self.prefix = ""
        self._answers = list(answers)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    @property
    def witness(self) -> Witness:
        port = self._listener.getsockname()[1]
        return Witness(f"http://127.0.0.1:{port}{self.prefix}", VERIFIER)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(10)
                self.heard.append(self._request(connection))
                answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                # The client may hang up before the whole answer is sent.
                with contextlib.suppress(OSError):
                    connection.sendall(answer)

    def _request(self, connection: socket.socket) -> bytes:
        heard = b""
        while part := connection.recv(65536):
            heard += part
            if heard.endswith(b"=\n"):
                break
        return heard


@contextmanager
def answering(*answers: bytes) -> Iterator[Fake]:
    fake = Fake(answers)
    try:
        yield fake
    finally:
        fake.close()


def http(status: int, body: bytes | str = b"", *headers: str) -> bytes:
    content = body.encode() if isinstance(body, str) else body
    lines = [
        f"HTTP/1.1 {status} X",
        f"Content-Length: {len(content)}",
        "Connection: close",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + content


def size_is(size: str) -> bytes:
    return http(409, size, "Content-Type: text/x.tlog.size")
