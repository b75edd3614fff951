"""Proof that a verifier of this installation wrote an entry of the stream: a MAC over its base JSON, under SECRET_KEY.

Without it, whoever can write into Redis writes decisions into the log. The letter and the number that the script adds are
not covered: Redis itself finds them out, after the MAC was made.
"""

import hmac
from functools import lru_cache
from typing import Final

from django.conf import settings

_LABEL: Final = b"agentauth/decision-entry/v1"
# Half a SHA-256: a forger has one try for each entry, and each wrong one is an event.
_BYTES: Final = 16


def mac_of(base: bytes) -> bytes:
    """16 bytes, under the present key."""
    return _mac(settings.SECRET_KEY, base)


def is_ours(base: bytes, mac: bytes) -> bool:
    """Whether `mac` is of `base` under the present key or one of SECRET_KEY_FALLBACKS."""
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return any(hmac.compare_digest(mac, _mac(each, base)) for each in keys)


def _mac(secret: str, base: bytes) -> bytes:
    return hmac.digest(_derived(secret), base, "sha256")[:_BYTES]


# salted_hmac derives the key at each call, which takes longer than the MAC.
@lru_cache(maxsize=8)
def _derived(secret: str) -> bytes:
    return hmac.digest(secret.encode(), _LABEL, "sha256")
