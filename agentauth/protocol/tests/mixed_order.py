"""Ed25519 keys that RFC 8032 section 5.1.5 cannot make: a real key plus a point of small order,
and signatures by them.
"""

import secrets
from functools import reduce
from typing import Final

from nacl.bindings import crypto_core_ed25519_scalar_reduce, crypto_hash_sha512
from nacl.bindings import crypto_scalarmult_ed25519_base_noclamp as base_times

from agentauth.protocol.keys import PublicKey, ed25519_public_key

FIELD: Final = 2**255 - 19
ORDER: Final = 2**252 + 27742317777372353535851937790883648493
_D: Final = -121665 * pow(121666, -1, FIELD) % FIELD
_ROOT: Final = pow(2, (FIELD - 1) // 4, FIELD)
Point = tuple[int, int]


def decoded(raw: bytes) -> Point:
    """RFC 8032 section 5.1.3."""
    number = int.from_bytes(raw, "little")
    y, sign = number & (2**255 - 1), number >> 255
    square = (y * y - 1) * pow(_D * y * y + 1, -1, FIELD) % FIELD
    x = pow(square, (FIELD + 3) // 8, FIELD)
    x = x if x * x % FIELD == square else x * _ROOT % FIELD
    assert x * x % FIELD == square
    return (x if x & 1 == sign else FIELD - x), y


def encoded(point: Point) -> bytes:
    return (point[1] | (point[0] & 1) << 255).to_bytes(32, "little")


def plus(a: Point, b: Point) -> Point:
    """RFC 8032 section 5.1.4."""
    (x1, y1), (x2, y2) = a, b
    t = _D * x1 * x2 * y1 * y2 % FIELD
    x = (x1 * y2 + x2 * y1) * pow(1 + t, -1, FIELD)
    return x % FIELD, (y1 * y2 + x1 * x2) * pow(1 - t, -1, FIELD) % FIELD


_ORDER_8: Final = decoded(
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05")
)
# All but the neutral element.
SMALL: Final = [reduce(plus, [_ORDER_8] * times) for times in range(1, 8)]


def mixed(raw: bytes, small: Point) -> bytes:
    """The encoding of a real key's point plus a point of small order."""
    return encoded(plus(decoded(raw), small))


class MixedSigner:
    """Signs with a mixed-order key such that our verifier accepts:

    R is chosen until 8 divides the challenge.
    """

    alg = "EdDSA"

    def __init__(self, small: Point = _ORDER_8) -> None:
        self._secret = secrets.randbelow(ORDER)
        self.raw = mixed(base_times(self._secret.to_bytes(32, "little")), small)
        # Read it as a proof's key is read: nothing else turns it into a PublicKey.
        self.public: PublicKey = ed25519_public_key(self.raw, registered=True)
        self.kid = self.public.thumbprint

    def sign(self, message: bytes) -> bytes:
        while True:
            nonce = secrets.randbelow(ORDER)
            r = base_times(nonce.to_bytes(32, "little"))
            digest = crypto_core_ed25519_scalar_reduce(crypto_hash_sha512(r + self.raw + message))
            challenge = int.from_bytes(digest, "little")
            if challenge % 8 == 0:
                return r + ((nonce + challenge * self._secret) % ORDER).to_bytes(32, "little")
