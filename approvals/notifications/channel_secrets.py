"""The keys of channels, encrypted under SECRET_KEY: a copy of the database has none of them.

A receiver needs the same key, so a digest as for other secrets is not enough. The channel's id,
human and address are part of what is authenticated: an attacker with the database alone can neither
read a key, nor point a channel elsewhere, nor give it to another human.
"""

import secrets
from functools import lru_cache
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings
from django.db.models import Q

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import EncodingError
from approvals.models import NotificationChannel
from registry.services.settings_agreement import key_id

KEY_BYTES: Final = 32
_NONCE_BYTES: Final = 12
_LABEL: Final = b"agentauth/webhook-secret/v1"


class UnreadableSecretError(Exception):
    """No SECRET_KEY of this process decrypts it, or the row was changed."""


def make_secret() -> bytes:
    """A new key for a webhook."""
    return secrets.token_bytes(KEY_BYTES)


def encrypt(channel: NotificationChannel, secret: bytes) -> str:
    """The key as stored in the channel: `<id of SECRET_KEY>.<nonce and ciphertext, base64url>`."""
    nonce = secrets.token_bytes(_NONCE_BYTES)
    sealed = _cipher(settings.SECRET_KEY).encrypt(nonce, secret, _context(channel))
    return f"{key_id(settings.SECRET_KEY.encode())}.{b64u_encode(nonce + sealed)}"


def decrypt(channel: NotificationChannel) -> bytes:
    """The key of this channel. Raises UnreadableSecretError."""
    named, _, text = channel.secret.partition(".")
    try:
        stored = b64u_decode(text)
        for each in (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS):
            if key_id(each.encode()) == named:
                return _cipher(each).decrypt(
                    stored[:_NONCE_BYTES], stored[_NONCE_BYTES:], _context(channel)
                )
    except (EncodingError, InvalidTag, ValueError):
        pass
    raise UnreadableSecretError


def encrypt_again(*, limit: int) -> int:
    """Encrypt keys under the newest SECRET_KEY, so that old ones can be dropped. Returns how many.

    At most `limit`. Unreadable ones stay and do not count: their messages fail and say why.
    """
    current = f"{key_id(settings.SECRET_KEY.encode())}."
    old = Q()
    for each in settings.SECRET_KEY_FALLBACKS:
        old |= Q(secret__startswith=f"{key_id(each.encode())}.")
    if not old:
        return 0
    rows = NotificationChannel.objects.filter(old).exclude(secret__startswith=current)
    rows = rows.order_by("pk")
    moved = 0
    page = list(rows[:limit])
    while page:
        for channel in page:
            try:
                secret = encrypt(channel, decrypt(channel))
            except UnreadableSecretError:
                continue
            same = NotificationChannel.objects.filter(pk=channel.pk, secret=channel.secret)
            moved += same.update(secret=secret)
        page = list(rows.filter(pk__gt=page[-1].pk)[: limit - moved]) if moved < limit else []
    return moved


def _context(channel: NotificationChannel) -> bytes:
    return f"{channel.pk} {channel.human_id} {channel.target}".encode()


@lru_cache(maxsize=8)
def _cipher(key: str) -> AESGCM:
    return AESGCM(HKDF(SHA256(), 32, salt=None, info=_LABEL).derive(key.encode()))
