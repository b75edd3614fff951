"""A software authenticator for tests: real keys and signatures, and every ceremony error."""

import hashlib
import json
import os
import struct
from dataclasses import dataclass, field
from typing import Any

import cbor2
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from agentauth.protocol.encoding import b64u_decode, b64u_encode

UP, UV, BE, BS, AT, ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80

Key = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


def new_key(alg: int) -> Key:
    if alg == -7:
        return ec.generate_private_key(ec.SECP256R1())
    if alg == -8:
        return ed25519.Ed25519PrivateKey.generate()
    return rsa.generate_private_key(65537, 2048)


@dataclass
class Authenticator:
    """One device with one resident credential. `assertion` and `registration` answer as browsers
    do.
    """

    rp_id: str = "localhost"
    origin: str = "http://localhost:8000"
    alg: int = -7
    credential_id: bytes = field(default_factory=lambda: os.urandom(32))
    user_handle: bytes = b""
    sign_count: int = 0
    counts: bool = True
    key: Key = field(init=False)

    def __post_init__(self) -> None:
        self.key = new_key(self.alg)

    @property
    def public_key(self) -> bytes:
        return cbor2.dumps(self.cose())

    def cose(self) -> dict[int, Any]:
        public = self.key.public_key()
        if isinstance(public, ec.EllipticCurvePublicKey):
            numbers = public.public_numbers()
            return {
                1: 2,
                3: -7,
                -1: 1,
                -2: numbers.x.to_bytes(32, "big"),
                -3: numbers.y.to_bytes(32, "big"),
            }
        if isinstance(public, ed25519.Ed25519PublicKey):
            return {1: 1, 3: -8, -1: 6, -2: public.public_bytes_raw()}
        n = public.public_numbers()
        return {1: 3, 3: -257, -1: n.n.to_bytes(256, "big"), -2: n.e.to_bytes(3, "big")}

    def sign(self, message: bytes) -> bytes:
        if isinstance(self.key, ec.EllipticCurvePrivateKey):
            return self.key.sign(message, ec.ECDSA(hashes.SHA256()))
        if isinstance(self.key, ed25519.Ed25519PrivateKey):
            return self.key.sign(message)
        return self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())

    def client_data(self, kind: str, challenge: str, **changes: Any) -> bytes:
        data: dict[str, Any] = {
            "type": kind,
            "challenge": challenge,
            "origin": self.origin,
            "crossOrigin": False,
        }
        data |= changes
        return json.dumps({k: v for k, v in data.items() if v is not ...}).encode()

    def authenticator_data(
        self, flags: int, *, rp_id: str | None = None, tail: bytes = b""
    ) -> bytes:
        if self.counts:
            self.sign_count += 1
        rp_hash = hashlib.sha256((rp_id or self.rp_id).encode()).digest()
        return rp_hash + bytes([flags]) + struct.pack(">I", self.sign_count) + tail

    def assertion(
        self,
        options: dict[str, Any],
        *,
        flags: int = UP | UV,
        kind: str = "webauthn.get",
        rp_id: str | None = None,
        tail: bytes = b"",
        client_bytes: bytes | None = None,
        signature: bytes | None = None,
        **client: Any,
    ) -> dict[str, Any]:
        """Answer request options; extra keywords change client data members (`...` drops one)."""
        client.setdefault("challenge", options["challenge"])
        challenge = client.pop("challenge")
        client_data = client_bytes or self.client_data(kind, challenge, **client)
        data = self.authenticator_data(flags, rp_id=rp_id, tail=tail)
        signed = (
            self.sign(data + hashlib.sha256(client_data).digest())
            if signature is None
            else signature
        )
        return self._credential(
            {
                "clientDataJSON": b64u_encode(client_data),
                "authenticatorData": b64u_encode(data),
                "signature": b64u_encode(signed),
                "userHandle": b64u_encode(self.user_handle) if self.user_handle else None,
            }
        )

    def registration(
        self,
        options: dict[str, Any],
        *,
        flags: int = UP | UV | AT,
        kind: str = "webauthn.create",
        tail: bytes = b"",
        fmt: str = "none",
        cose: dict[int, Any] | None = None,
        attestation_tail: bytes = b"",
        **client: Any,
    ) -> dict[str, Any]:
        """Answer creation options, remembering the user handle as a resident credential does."""
        self.user_handle = b64u_decode(options["user"]["id"])
        challenge = client.pop("challenge", options["challenge"])
        key = cbor2.dumps(cose or self.cose())
        attested = bytes(16) + struct.pack(">H", len(self.credential_id)) + self.credential_id + key
        data = self.authenticator_data(flags, tail=attested + tail)
        attestation = cbor2.dumps({"fmt": fmt, "attStmt": {}, "authData": data}) + attestation_tail
        return self._credential(
            {
                "clientDataJSON": b64u_encode(self.client_data(kind, challenge, **client)),
                "attestationObject": b64u_encode(attestation),
                "transports": ["internal"],
            }
        )

    def _credential(self, response: dict[str, Any]) -> dict[str, Any]:
        identifier = b64u_encode(self.credential_id)
        return {
            "id": identifier,
            "rawId": identifier,
            "type": "public-key",
            "authenticatorAttachment": "platform",
            "clientExtensionResults": {},
            "response": response,
        }
