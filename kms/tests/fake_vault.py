"""A fake Vault that answers as a test says, like a faulty or malicious key service."""

import base64
import json
from collections.abc import Callable
from typing import Any

from agentauth.protocol.keys import PrivateKey
from tests.http_server import Quiet

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


class FakeVault(Quiet):
    """The handler of one request. A test changes its attributes and methods on a subclass."""

    key: Any = GOOD
    signature: Callable[[bytes], Any]

    def do_GET(self) -> None:
        self.say(200, {"data": type(self).key})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        signature = type(self).signature(base64.b64decode(body["input"]))
        self.say(200, {"data": {"signature": signature}})
