"""The `vault:` backend: minimal rights suffice, exportable keys are refused, answers checked."""

import base64
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import hvac
import pytest
from hvac.exceptions import Forbidden, VaultError
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import PrivateKey
from kms.backends import BackendError, create, open_signer, public_key
from tests.openbao import ROOT_TOKEN

POLICY = """
path "transit/keys/agentauth-*" { capabilities = ["create", "update", "read"] }
path "transit/sign/agentauth-*" { capabilities = ["update"] }
"""
NAME = "agentauth-token-00000000-0000-7000-8000-000000000000"
URI = f"vault:transit/{NAME}"


def test_the_rights_of_the_documented_policy_suffice_and_export_nothing(
    vault: str, settings: Settings
) -> None:
    root: Any = hvac.Client(url=vault, token=ROOT_TOKEN)
    root.sys.create_or_update_policy("agentauth", POLICY)
    settings.VAULT["TOKEN"] = root.auth.token.create(policies=["agentauth"])["auth"]["client_token"]
    uri, public = create(purpose="token")
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    mine: Any = hvac.Client(url=vault, token=settings.VAULT["TOKEN"])
    with pytest.raises(Forbidden):
        mine.secrets.transit.export_key(name=uri.rpartition("/")[2], key_type="signing-key")
    with pytest.raises(VaultError):
        root.secrets.transit.export_key(name=uri.rpartition("/")[2], key_type="signing-key")


@pytest.mark.parametrize(
    "kind",
    [
        {"key_type": "ed25519", "exportable": True},
        {"key_type": "ed25519", "allow_plaintext_backup": True},
        {"key_type": "ecdsa-p384"},
        {"key_type": "aes256-gcm96"},
    ],
)
def test_a_key_of_another_kind_or_one_that_can_leave_is_refused(
    vault: str, kind: dict[str, Any]
) -> None:
    name = NAME[:-4] + f"{zlib.crc32(json.dumps(kind).encode()) & 0xFFFF:04x}"
    root: Any = hvac.Client(url=vault, token=ROOT_TOKEN)
    root.secrets.transit.create_key(name=name, **kind)
    with pytest.raises(BackendError):
        public_key(f"vault:transit/{name}")


@pytest.mark.parametrize("token", ["", "wrong-token"])
def test_KM_14_a_wrong_token_is_an_error_that_does_not_show_it(
    vault: str, settings: Settings, token: str
) -> None:
    settings.VAULT["TOKEN"] = token
    with pytest.raises(BackendError) as refused:
        create(purpose="token")
    assert "wrong-token" not in str(refused.value)


KEY = PrivateKey.generate("EdDSA")
PUBLIC = base64.b64encode(base64.urlsafe_b64decode(KEY.public.jwk["x"] + "=")).decode()
GOOD: dict[str, Any] = {
    "type": "ed25519",
    "exportable": False,
    "allow_plaintext_backup": False,
    "keys": {"1": {"public_key": PUBLIC}},
}


class _Liar(BaseHTTPRequestHandler):
    """Answers as told, like a broken or false key service."""

    key: Any = GOOD
    signature: Callable[[bytes], Any]

    def do_GET(self) -> None:
        self._answer({"data": type(self).key})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"data": {"signature": type(self).signature(base64.b64decode(body["input"]))}})

    do_PUT = do_POST  # noqa: N815 — the name http.server calls

    def _answer(self, body: object) -> None:
        text = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_arguments: object) -> None:
        """Log nothing: a test's output is for the test."""


@pytest.fixture
def liar(settings: Settings) -> Iterator[type[_Liar]]:
    handler = type("Liar", (_Liar,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    settings.VAULT = {"ADDR": f"http://127.0.0.1:{server.server_port}", "TOKEN": "token"}
    yield handler
    server.shutdown()
    server.server_close()
    thread.join()


def _encoded(signature: bytes, version: int = 1) -> str:
    return f"vault:v{version}:{base64.b64encode(signature).decode()}"


def test_the_liar_can_tell_the_truth(liar: type[_Liar]) -> None:
    liar.signature = staticmethod(lambda message: _encoded(KEY.sign(message)))
    assert open_signer(URI, KEY.public).sign(b"m") == KEY.sign(b"m")


@pytest.mark.parametrize(
    "lie",
    [
        lambda message: _encoded(KEY.sign(message + b"!")),
        lambda message: _encoded(PrivateKey.generate("EdDSA").sign(message)),
        lambda message: _encoded(KEY.sign(message), version=2),
        lambda message: _encoded(KEY.sign(message)[:63]),
        lambda message: _encoded(KEY.sign(message)) + "*",
        lambda message: KEY.sign(message).hex(),
        lambda _message: "",
        lambda _message: None,
        lambda _message: {"a": 1},
    ],
    ids=[
        "of-another-message",
        "by-another-key",
        "other-version",
        "short",
        "not-base64",
        "hex",
        "empty",
        "null",
        "object",
    ],
)
def test_a_signature_that_is_not_the_one_asked_for_is_never_used(
    liar: type[_Liar], lie: Callable[[bytes], Any]
) -> None:
    liar.signature = staticmethod(lie)
    with pytest.raises(BackendError):
        open_signer(URI, KEY.public).sign(b"m")


@pytest.mark.parametrize(
    "key",
    [
        None,
        [],
        {},
        {**GOOD, "keys": {}},
        {**GOOD, "keys": {"2": {"public_key": PUBLIC}}},
        {**GOOD, "keys": {"1": {"public_key": "AAAA"}}},
        {**GOOD, "keys": {"1": {"public_key": base64.b64encode(bytes(32)).decode()}}},
        {**GOOD, "keys": {"1": {"public_key": 5}}},
        {**GOOD, "keys": {"1": {"public_key": "é"}}},
    ],
    ids=[
        "null",
        "list",
        "empty",
        "no-version",
        "other-version",
        "short",
        "small-order",
        "number",
        "not-ascii",
    ],
)
def test_a_public_key_that_is_none_is_refused(liar: type[_Liar], key: Any) -> None:
    liar.key = key
    with pytest.raises(BackendError):
        public_key(URI)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_SS_4_a_redirect_is_not_followed(
    liar: type[_Liar], settings: Settings, status: int
) -> None:
    """The server it leads to would get the token, and could name any address in our network."""
    followed: list[str] = []
    home, settings.KEY_BACKEND = settings.VAULT["ADDR"], "vault"

    def redirecting(self: _Liar) -> None:
        if self.path.startswith("/elsewhere"):
            followed.append(self.path)
            self._answer({"data": GOOD})
            return
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(status)
        self.send_header("Location", f"{home}/elsewhere{self.path}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    liar.do_GET = liar.do_POST = liar.do_PUT = redirecting  # type: ignore[method-assign]
    with pytest.raises(BackendError):
        public_key(URI)
    with pytest.raises(BackendError):
        create(purpose="token")
    liar.do_GET = _Liar.do_GET  # type: ignore[method-assign]
    assert public_key(URI) == KEY.public
    signer = open_signer(URI, KEY.public)
    with pytest.raises(BackendError):
        signer.sign(b"m")
    assert followed == []
