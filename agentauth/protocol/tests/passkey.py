"""A passkey in software: makes COSE keys and assertions, valid ones and, by argument, invalid
ones.
"""

import json
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from agentauth.protocol.encoding import b64u_encode, sha256


def cbor(value: Any) -> bytes:
    """Encode integers, byte strings, text and maps in shortest form."""
    if isinstance(value, int):
        return _head(0, value) if value >= 0 else _head(1, -1 - value)
    if isinstance(value, bytes):
        return _head(2, len(value)) + value
    if isinstance(value, str):
        return _head(3, len(value.encode())) + value.encode()
    return _head(5, len(value)) + b"".join(cbor(key) + cbor(item) for key, item in value.items())


def _head(major: int, number: int) -> bytes:
    if number < 24:
        return bytes([major << 5 | number])
    size, code = (1, 24) if number < 0x100 else (2, 25)
    return bytes([major << 5 | code]) + number.to_bytes(size, "big")


class Passkey:
    """One credential; `alg` is ES256, EdDSA or RS256."""

    def __init__(self, alg: str = "ES256", *, rsa_bits: int = 2048) -> None:
        self.alg = alg
        self.credential_id = b"credential-" + alg.encode()
        self._key: Any
        if alg == "ES256":
            self._key = ec.generate_private_key(ec.SECP256R1())
            numbers = self._key.public_key().public_numbers()
            x, y = (number.to_bytes(32, "big") for number in (numbers.x, numbers.y))
            self.labels: dict[int, Any] = {1: 2, 3: -7, -1: 1, -2: x, -3: y}
        elif alg == "EdDSA":
            self._key = ed25519.Ed25519PrivateKey.generate()
            self.labels = {1: 1, 3: -8, -1: 6, -2: self._key.public_key().public_bytes_raw()}
        else:
            self._key = rsa.generate_private_key(65_537, rsa_bits)
            n = self._key.public_key().public_numbers().n
            self.labels = {1: 3, 3: -257, -1: n.to_bytes(rsa_bits // 8, "big"), -2: b"\x01\x00\x01"}

    @property
    def cose(self) -> bytes:
        return cbor(self.labels)

    def sign_raw(self, message: bytes) -> bytes:
        signature: bytes
        if self.alg == "ES256":
            signature = self._key.sign(message, ec.ECDSA(hashes.SHA256()))
        elif self.alg == "EdDSA":
            signature = self._key.sign(message)
        else:
            signature = self._key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        return signature

    def answer(
        self,
        challenge: bytes,
        /,
        *,
        origin: str = "https://registry.example",
        rp_id: str = "registry.example",
        flags: int = 0x05,
        trailing: bytes = b"",
        **client: Any,
    ) -> dict[str, bytes]:
        """authenticatorData, clientDataJSON and signature; `client` overrides members of the client
        data.
        """
        members = {
            "type": "webauthn.get",
            "challenge": b64u_encode(challenge),
            "origin": origin,
            "crossOrigin": False,
        }
        client_data = json.dumps({**members, **client}).encode()
        data = sha256(rp_id.encode()) + bytes([flags]) + (7).to_bytes(4, "big") + trailing
        return {
            "authenticator_data": data,
            "client_data_json": client_data,
            "signature": self.sign_raw(data + sha256(client_data)),
        }
