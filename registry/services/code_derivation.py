"""Codes and links that people carry: makes, parses and derives them. Callers store and check."""

import hmac
import secrets
import uuid
from collections.abc import Iterable

from registry.services.secret_key_macs import derive_macs

# Crockford's Base32: no I, L, O or U. `read_code` reads I and L as 1 and O as 0; a U matches no
# code.
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
    """The claim link's 16-byte secret under each SECRET_KEY. Give out the first; accept all."""
    made = derive_macs("agentauth/claim-secret/v1", str(agent_id), str(claim_number))
    return tuple(each[:CLAIM_SECRET_BYTES] for each in made)


def claim_codes(agent_id: uuid.UUID, claim_number: int) -> tuple[str, ...]:
    """The claim page's 8-character code under each SECRET_KEY. Show the first; accept all."""
    made = derive_macs("agentauth/claim-code/v1", str(agent_id), str(claim_number))
    return tuple(
        "".join(ALPHABET[byte & 31] for byte in each[:CLAIM_CODE_CHARACTERS]) for each in made
    )


def is_one_of(presented: bytes, expected: Iterable[bytes]) -> bool:
    """Whether `presented` equals one of `expected`, each compared in constant time."""
    return any(hmac.compare_digest(presented, each) for each in expected)
