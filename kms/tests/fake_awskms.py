"""A fake AWS KMS that throttles, lies, stalls and breaks off, as the real one never does at will.

It speaks the service's JSON protocol on loopback, does not check request signatures, and holds one
key.
"""

import base64
import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentauth.protocol.keys import Algorithm, PrivateKey
from tests import http_server
from tests.http_server import Quiet

ARN = "arn:aws:kms:eu-central-1:123456789012:key/0192f1c8-0000-4000-8000-000000000001"
URI = f"awskms:{ARN}"
SPECS = {
    "EdDSA": ("ECC_NIST_EDWARDS25519", ["ED25519_SHA_512", "ED25519_PH_SHA_512"]),
    "ES256": ("ECC_NIST_P256", ["ECDSA_SHA_256"]),
}
Answer = Callable[[dict[str, Any]], tuple[int, Any]]


def base64_text(value: bytes) -> str:
    return base64.b64encode(value).decode()


def refusal(code: str, status: int = 400, message: str = "") -> Answer:
    return lambda _asked: (status, {"__type": code, "message": message})


class FakeKms:
    """`answers` maps each operation to a status, and a body or an action on the connection.

    `asked` is what came, in order; `elsewhere` what came to another path.
    """

    def __init__(self, alg: Algorithm = "EdDSA") -> None:
        self.key = PrivateKey.generate(alg)
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.elsewhere: list[str] = []
        self.release = threading.Event()
        self.answers: dict[str, Answer] = {
            "GetPublicKey": lambda _asked: (200, self.public()),
            "Sign": lambda asked: (200, self.signed(self.signature(asked))),
            "CreateKey": lambda _asked: (
                200,
                {"KeyMetadata": {"KeyId": ARN.rpartition("/")[2], "Arn": ARN}},
            ),
        }

    def public(self, **changes: Any) -> dict[str, Any]:
        spec, algorithms = SPECS[self.key.public.alg]
        spki = self.key._key.public_key().public_bytes(
            Encoding.DER, PublicFormat.SubjectPublicKeyInfo
        )
        return {
            "KeyId": ARN,
            "KeyUsage": "SIGN_VERIFY",
            "KeySpec": spec,
            "SigningAlgorithms": algorithms,
            "PublicKey": base64_text(spki),
        } | changes

    def signed(self, signature: Any) -> dict[str, Any]:
        text = base64_text(signature) if isinstance(signature, bytes) else signature
        return {"KeyId": ARN, "Signature": text, "SigningAlgorithm": "any"}

    def signature(self, asked: dict[str, Any]) -> bytes:
        """Sign a message as the service would. Ed25519 only: P-256 requests carry a digest."""
        return self.key.sign(base64.b64decode(asked["Message"]))


def der(signature: bytes) -> bytes:
    return encode_dss_signature(
        int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    )


def reset(handler: BaseHTTPRequestHandler) -> None:
    # Send RST instead of FIN, in the middle of the answer.
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{")
    handler.wfile.flush()
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()


@contextlib.contextmanager
def serving(fake: FakeKms) -> Iterator[str]:
    """Serve the fake; yields its URL."""

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            asked = json.loads(self.body())
            operation = self.headers.get("X-Amz-Target", "").removeprefix("TrentService.")
            if self.path != "/":
                fake.elsewhere.append(self.path)
            fake.asked.append((operation, asked))
            status, body = fake.answers[operation](asked)
            if callable(body):
                with contextlib.suppress(OSError):
                    body(self)
                self.close_connection = True
                return
            text = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": "application/x-amz-json-1.1"}
            if 300 <= status < 400:
                headers["Location"] = f"http://{self.headers['Host']}/elsewhere"
            self.say(status, text, headers)

        def do_GET(self) -> None:
            fake.elsewhere.append(self.path)
            self.send_error(404)

    with http_server.serving(Handler) as url:
        try:
            yield url
        finally:
            fake.release.set()
