"""The MAC of a stream entry, which proves that a verifier of this installation wrote it.

It covers the base JSON, under SECRET_KEY. Without it, an attacker who can write into Redis could
write decisions into the log. The letter and the number that the script adds are not covered,
because the script finds them after the MAC was made.
"""

import hmac
from functools import lru_cache
from typing import Final

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from django.conf import settings

_LABEL: Final = b"agentauth/decision-entry/v1"
# Half a SHA-256 is enough: a forger has one try per entry, and each wrong one is logged as an
# event.
_BYTES: Final = 16


def mac_of(base: bytes) -> bytes:
    """The 16-byte MAC under the current SECRET_KEY."""
    return _mac(settings.SECRET_KEY, base)


def is_ours(base: bytes, mac: bytes) -> bool:
    """Whether `mac` fits `base` under SECRET_KEY or one of SECRET_KEY_FALLBACKS."""
    return hmac.compare_digest(mac, mac_of(base)) or any(
        hmac.compare_digest(mac, _mac(each, base)) for each in settings.SECRET_KEY_FALLBACKS
    )


def _mac(secret: str, base: bytes) -> bytes:
    made = _derive_key(secret).copy()
    made.update(base)
    return made.finalize()[:_BYTES]


# Deriving the key, and setting up OpenSSL's HMAC, takes several times as long as the MAC itself.
@lru_cache(maxsize=8)
def _derive_key(secret: str) -> HMAC:
    return HMAC(hmac.digest(secret.encode(), _LABEL, "sha256"), SHA256())
