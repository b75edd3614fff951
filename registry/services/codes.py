"""Codes and links that people carry: how they are made, read back and derived. Nothing here is stored or checked."""

import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable

from django.conf import settings

# Base32 without the letters people take for others; reading them back forgives exactly those.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FORGIVEN = str.maketrans("OIL", "011", "- ")
CLAIM_CODE_CHARACTERS = 8
CLAIM_SECRET_BYTES = 16


def random_code(characters: int) -> str:
    """`characters` letters of 5 random bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(characters))


def read_code(text: str) -> str:
    """A code as a person typed it, in the one form it was made in: capitals, no gaps, O as 0, I and L as 1."""
    return text.strip().upper().translate(_FORGIVEN)


def derived(label: str, *parts: str) -> tuple[bytes, ...]:
    """32 bytes that only this server can compute: HMAC-SHA-256 over `label` and `parts` (docs/protocol.md section 5).

    The first by SECRET_KEY: it is given out. Then by each of SECRET_KEY_FALLBACKS: taken too, so that what was given out before
    a rotation goes on working. A label of its own keeps one use from ever answering for another.
    """
    message = "\x00".join((label, *parts)).encode()
    keys = (settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS)
    return tuple(hmac.new(key.encode(), message, hashlib.sha256).digest() for key in keys)


def claim_secrets(agent_id: uuid.UUID, claim_number: int) -> tuple[bytes, ...]:
    """The 128 bits that make one claim link secret: of the link that is shown, then of others that are taken."""
    made = derived("agentauth/claim-secret/v1", str(agent_id), str(claim_number))
    return tuple(each[:CLAIM_SECRET_BYTES] for each in made)


def claim_codes(agent_id: uuid.UUID, claim_number: int) -> tuple[str, ...]:
    """The 8 characters to be typed on the page of the claim link: those the agent shows, then others that are taken."""
    made = derived("agentauth/claim-code/v1", str(agent_id), str(claim_number))
    return tuple("".join(ALPHABET[byte & 31] for byte in each[:CLAIM_CODE_CHARACTERS]) for each in made)


def is_one_of(presented: bytes, expected: Iterable[bytes]) -> bool:
    """Whether it equals one of those, compared with each in constant time."""
    return any(hmac.compare_digest(presented, each) for each in expected)
