"""A fake Google Cloud KMS for tests: the calls we make, in this process, on a free loopback port.

There is no emulator. Environment variables direct Google's client here: a "universe" whose domain
is localhost, a root certificate, and a service account. So calls use TLS and credentials, as in
production.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import google_crc32c
import grpc
import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from google.cloud.kms_v1 import (
    AsymmetricSignRequest,
    AsymmetricSignResponse,
    CreateCryptoKeyRequest,
    CryptoKey,
    CryptoKeyVersion,
    GetCryptoKeyVersionRequest,
    GetPublicKeyRequest,
    PublicKey,
)

from tests.certificates import certificate_for

RING: Final = "projects/agentauth-tests/locations/europe-west1/keyRings/signing"
HOST: Final = "cloudkms.localhost"
State = CryptoKeyVersion.CryptoKeyVersionState
Kind = CryptoKeyVersion.CryptoKeyVersionAlgorithm


@dataclass
class Version:
    """One version of a key. `polls`: how often it is requested before it can be used."""

    private: ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey
    kind: int
    protection: int
    polls: int = 0
    state: int = State.ENABLED


def _as_it_is(_answer: Any) -> None:
    """Leave the answer unchanged."""


@dataclass
class Service:
    """The keys it holds, and the faults it injects. `spoil` may change each answer."""

    env: dict[str, str]
    account: rsa.RSAPublicKey
    keys: dict[str, Version] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    # The callers: each connection has its own name.
    callers: list[str] = field(default_factory=list)
    refusal: grpc.StatusCode | None = None
    slow_seconds: float = 0.0
    polls: int = 0
    spoil: Callable[[Any], object] = _as_it_is

    def well(self) -> None:
        """End all faults; keys stay."""
        self.refusal, self.slow_seconds, self.polls, self.spoil = None, 0.0, 0, _as_it_is
        self.calls.clear()

    def create_crypto_key(
        self, asked: CreateCryptoKeyRequest, context: grpc.ServicerContext
    ) -> CryptoKey:
        name = f"{asked.parent}/cryptoKeys/{asked.crypto_key_id}"
        if not asked.parent.endswith("/signing"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"no key ring at {HOST}")
        if f"{name}/cryptoKeyVersions/1" in self.keys:
            context.abort(grpc.StatusCode.ALREADY_EXISTS, name)
        template = asked.crypto_key.version_template
        private = (
            ed25519.Ed25519PrivateKey.generate()
            if template.algorithm == Kind.EC_SIGN_ED25519
            else ec.generate_private_key(ec.SECP256R1())
        )
        state = State.PENDING_GENERATION if self.polls else State.ENABLED
        made = Version(private, template.algorithm, template.protection_level, self.polls, state)
        self.keys[f"{name}/cryptoKeyVersions/1"] = made
        return CryptoKey(name=name, purpose=asked.crypto_key.purpose, version_template=template)

    def get_crypto_key_version(
        self, asked: GetCryptoKeyVersionRequest, context: grpc.ServicerContext
    ) -> CryptoKeyVersion:
        version = self._found(asked.name, context)
        if version.state == State.PENDING_GENERATION:
            version.polls -= 1
            if version.polls < 0:
                version.state = State.ENABLED
        return CryptoKeyVersion(name=asked.name, state=version.state, algorithm=version.kind)

    def get_public_key(
        self, asked: GetPublicKeyRequest, context: grpc.ServicerContext
    ) -> PublicKey:
        version = self._usable(asked.name, context)
        pem = spki(version.private.public_key())
        return PublicKey(
            name=asked.name,
            pem=pem.decode(),
            algorithm=version.kind,
            pem_crc32c=google_crc32c.value(pem),
            protection_level=version.protection,
        )

    def asymmetric_sign(
        self, asked: AsymmetricSignRequest, context: grpc.ServicerContext
    ) -> AsymmetricSignResponse:
        version = self._usable(asked.name, context)
        private = version.private
        if isinstance(private, ed25519.Ed25519PrivateKey):
            sent, crc32c, signature = asked.data, asked.data_crc32c, private.sign(asked.data)
        else:
            sent, crc32c = asked.digest.sha256, asked.digest_crc32c
            signature = private.sign(sent, ec.ECDSA(Prehashed(hashes.SHA256())))
        if not sent or crc32c is None or google_crc32c.value(sent) != crc32c:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the checksum or the field is wrong")
        data = isinstance(private, ed25519.Ed25519PrivateKey)
        return AsymmetricSignResponse(
            name=asked.name,
            signature=signature,
            signature_crc32c=google_crc32c.value(signature),
            verified_data_crc32c=data,
            verified_digest_crc32c=not data,
            protection_level=version.protection,
        )

    def answer(self, name: str, call: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        """Handle one call that has the account's token, with the injected faults and delay."""

        def answered(asked: Any, context: grpc.ServicerContext) -> Any:
            self.calls.append(name)
            self.callers.append(context.peer())
            try:
                scheme, _, token = dict(context.invocation_metadata())["authorization"].partition(
                    " "
                )
                assert scheme == "Bearer"
                jwt.decode(
                    token, self.account, ["RS256"], audience="https://cloudkms.googleapis.com/"
                )
            except (KeyError, jwt.InvalidTokenError):
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "who is this?")
            time.sleep(self.slow_seconds)
            if self.refusal:
                context.abort(self.refusal, f"refused at {HOST}")
            answer = call(asked, context)
            self.spoil(answer)
            return answer

        return answered

    def _found(self, name: str, context: grpc.ServicerContext) -> Version:
        if name not in self.keys:
            context.abort(grpc.StatusCode.NOT_FOUND, name)
        return self.keys[name]

    def _usable(self, name: str, context: grpc.ServicerContext) -> Version:
        version = self._found(name, context)
        if version.state != State.ENABLED:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"{name} is not enabled")
        return version


@contextlib.contextmanager
def service(home: Path) -> Iterator[Service]:
    """A running service; `env` gives a process the address and full rights."""
    account = rsa.generate_private_key(65537, 2048)
    certificate, key = certificate_for(HOST)
    (home / "roots.pem").write_bytes(certificate)
    server = grpc.server(ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
    env = {
        "GOOGLE_CLOUD_UNIVERSE_DOMAIN": f"localhost:{port}",
        "GOOGLE_APPLICATION_CREDENTIALS": str(home / "account.json"),
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH": str(home / "roots.pem"),
    }
    write_account(home / "account.json", account, port)
    running = Service(env, account.public_key())
    handlers = {
        name: grpc.unary_unary_rpc_method_handler(
            running.answer(name, call),
            request_deserializer=asked.deserialize,
            response_serializer=answer.serialize,
        )
        for name, call, asked, answer in (
            ("CreateCryptoKey", running.create_crypto_key, CreateCryptoKeyRequest, CryptoKey),
            (
                "GetCryptoKeyVersion",
                running.get_crypto_key_version,
                GetCryptoKeyVersionRequest,
                CryptoKeyVersion,
            ),
            ("GetPublicKey", running.get_public_key, GetPublicKeyRequest, PublicKey),
            (
                "AsymmetricSign",
                running.asymmetric_sign,
                AsymmetricSignRequest,
                AsymmetricSignResponse,
            ),
        )
    }
    named = grpc.method_handlers_generic_handler(
        "google.cloud.kms.v1.KeyManagementService", handlers
    )
    server.add_generic_rpc_handlers((named,))
    server.start()
    try:
        yield running
    finally:
        server.stop(0).wait()


def write_account(path: Path, key: rsa.RSAPrivateKey, port: int) -> None:
    """Write a service account file. With it the client signs its own tokens."""
    account = {
        "type": "service_account",
        "project_id": "agentauth-tests",
        "client_email": "agentauth@agentauth-tests.iam.gserviceaccount.com",
        "client_id": "1",
        "private_key_id": "1",
        "private_key": _private(key).decode(),
        "token_uri": "https://localhost:1/token",
        "universe_domain": f"localhost:{port}",
    }
    path.write_text(json.dumps(account))


def _private(key: rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def spki(key: Any) -> bytes:
    """A public key as PEM."""
    return bytes(
        key.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
