"""Whose Redis it is (`aa:registry`, the PUBLIC_URL): two registries in one would share their keys.

Each would drain the other's decisions, and count them as lost. An attacker who can write into Redis
gains nothing from this key: emptying Redis, or a later epoch, stops verify as well.
"""

from typing import Any, Final

from django.conf import settings

from agentauth.protocol.untrusted_text import printable

KEY: Final = b"aa:registry"
_SHOWN: Final = 200


def claim(client: Any) -> str:
    """Write this registry's name where there is none; returns what is wrong, empty if nothing."""
    if client.get(KEY) is None:
        client.set(KEY, settings.ISSUER, nx=True)
    return other_registry(client)


def other_registry(client: Any) -> str:
    """What is wrong and what to do, if Redis belongs to another registry; empty if not."""
    there = client.get(KEY)
    if there is None or there in {settings.ISSUER, settings.ISSUER.encode()}:
        return ""
    text = there if isinstance(there, str) else there.decode(errors="replace")
    return (
        f"Redis belongs to the registry {printable(text[:_SHOWN])}: name another Redis, or another "
        f"database number of it, in REDIS_URL. If this registry had that PUBLIC_URL before, delete "
        f"the key {KEY.decode()} in Redis"
    )
