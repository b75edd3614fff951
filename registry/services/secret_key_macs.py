"""MACs under SECRET_KEY, and under the keys that it replaced."""

import hashlib
import hmac

from django.conf import settings


def derive_macs(label: str, *parts: str) -> tuple[bytes, ...]:
    """HMAC-SHA-256 over `label` and `parts`, by each SECRET_KEY (docs/protocol.md section 5).

    The first, by SECRET_KEY, is the one to give out. Accept the others too, by
    SECRET_KEY_FALLBACKS, so that what was given out before a rotation still works. Each use has its
    own label, so that its values are not valid for another use.
    """
    message = "\x00".join((label, *parts)).encode()
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return tuple(hmac.new(key.encode(), message, hashlib.sha256).digest() for key in keys)
