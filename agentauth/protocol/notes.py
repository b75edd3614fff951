"""Verifier keys of signed notes, in which the audit log's checkpoints are written (c2sp.org/signed-note)."""

import base64
import hashlib
from typing import Final

from .encoding import b64u_decode
from .errors import InvalidKeyError
from .keys import PublicKey

# The signature type of Ed25519 in a signed note.
_ED25519: Final = b"\x01"


def verifier_key(name: str, key: PublicKey) -> str:
    """`name+hash+key`: the text by which others are told to trust `key` under `name`.

    `hash` is 4 bytes of SHA-256 over name, line feed, type and key, in hex; `key` is standard base64 of type and the
    32 bytes of an Ed25519 key. Raises InvalidKeyError for another kind of key, ValueError for a name that a note
    cannot hold.
    """
    if not name or "+" in name or any(character.isspace() for character in name):
        raise ValueError("a note's key name is not empty and holds neither spaces nor plus signs")
    if key.kty != "OKP":
        raise InvalidKeyError("A verifier key of a signed note is an Ed25519 key.")
    raw = _ED25519 + b64u_decode(key.x)
    key_hash = hashlib.sha256(name.encode() + b"\n" + raw).digest()[:4]
    return f"{name}+{key_hash.hex()}+{base64.b64encode(raw).decode()}"
