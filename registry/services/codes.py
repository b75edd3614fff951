"""Codes and links that people carry: how they are made, read back and derived. Nothing here is stored or checked."""

import hashlib
import hmac
import secrets
import uuid

from django.conf import settings

from agentauth.protocol.encoding import b64u_encode

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


def derived(label: str, *parts: str) -> bytes:
    """32 bytes that only this server can compute: HMAC-SHA-256 over `label` and `parts` (docs/protocol.md section 5).

    A label of its own keeps one use from ever answering for another.
    """
    message = "\x00".join((label, *parts)).encode()
    return hmac.new(settings.SECRET_KEY.encode(), message, hashlib.sha256).digest()


def claim_secret(agent_id: uuid.UUID, claim_number: int) -> bytes:
    """The 128 bits that make one claim link secret."""
    return derived("agentauth/claim-secret/v1", str(agent_id), str(claim_number))[:CLAIM_SECRET_BYTES]


def claim_code(agent_id: uuid.UUID, claim_number: int) -> str:
    """The 8 characters the agent shows its human, to be typed on the page of the claim link."""
    digest = derived("agentauth/claim-code/v1", str(agent_id), str(claim_number))
    return "".join(ALPHABET[byte & 31] for byte in digest[:CLAIM_CODE_CHARACTERS])


def pairwise_subject(human_id: uuid.UUID, service_provider_id: uuid.UUID) -> str:
    """The `sub` of one human at one service provider: two of them cannot tell that it is the same person."""
    return b64u_encode(derived("agentauth/subject/v1", str(service_provider_id), str(human_id)))
