"""Codes and links that people carry: made, parsed and derived here. Callers store and check."""

import hmac
import secrets
import uuid
from collections.abc import Iterable

from registry.services.secret_key_macs import derive_macs

# Base32 without the letters people confuse with others. `read_code` accepts those letters too.
ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_FORGIVEN = str.maketrans("OIL", "011", "- ")
CLAIM_CODE_CHARACTERS = 8
CLAIM_SECRET_BYTES = 16


def random_code(characters: int) -> str:
    """`characters` symbols of 5 random bits each."""
    return "".join(secrets.choice(ALPHABET) for _ in range(characters))


def read_code(text: str) -> str:
    """A code as a person typed it, normalised: capitals, no gaps, O as 0, I and L as 1."""
    return text.strip().upper().translate(_FORGIVEN)


def claim_secrets(agent_id: uuid.UUID, claim_number: int) -> tuple[bytes, ...]:
    """The 128 secret bits of a claim link: those to give out, then older ones to accept."""
    made = derive_macs("agentauth/claim-secret/v1", str(agent_id), str(claim_number))
    return tuple(each[:CLAIM_SECRET_BYTES] for each in made)


def claim_codes(agent_id: uuid.UUID, claim_number: int) -> tuple[str, ...]:
    """The 8 characters to type on the claim page: those to show, then older ones to accept."""
    made = derive_macs("agentauth/claim-code/v1", str(agent_id), str(claim_number))
    return tuple(
        "".join(ALPHABET[byte & 31] for byte in each[:CLAIM_CODE_CHARACTERS]) for each in made
    )


def is_one_of(presented: bytes, expected: Iterable[bytes]) -> bool:
    """Whether `presented` equals one of `expected`, each compared in constant time."""
    return any(hmac.compare_digest(presented, each) for each in expected)
