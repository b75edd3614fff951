"""How one key of the registry introduces the next: a statement, signed by the current key, that
names its successor.

A client that trusts one key of a purpose can follow the chain to later ones without trusting the
server that lists them. A disabled key introduces no other: an attacker who has it could have signed
the introduction.
"""

from collections.abc import Sequence
from typing import Final

from .errors import EncodingError, InvalidKeyError, InvalidRequestError, InvalidSignatureError
from .jose import parse_compact, sign_compact, verify_jws
from .json_fields import integer, members
from .keys import PublicKey, Signer, parse_jwk

INTRODUCTION_TYP: Final = "key-introduction+jwt"
# More rotations than a purpose ever has. Bounds the work that a document can cause.
MAX_INTRODUCTIONS: Final = 1_000
_CLAIMS: Final = ("iss", "purpose", "iat", "jwk")


def sign_introduction(
    current: Signer, following: PublicKey, *, issuer: str, purpose: str, issued_at: int
) -> str:
    """Sign, with the current key, an introduction of the following one (docs/protocol.md section
    4).
    """
    claims = {"iss": issuer, "purpose": purpose, "iat": issued_at, "jwk": following.jwk}
    return sign_compact(claims, current, typ=INTRODUCTION_TYP, header={"kid": current.kid})


def verify_introduction(
    compact: str, current: PublicKey, *, expected_issuer: str, expected_purpose: str
) -> PublicKey:
    """Verify an introduction and return the key that `current` introduces.

    1. Signed by `current`, as this `typ`. 2. Exactly the known claims. 3. Of this registry and this
    purpose: a stolen receipt key must not introduce a token key. 4. The following key passes every
    check of section 1. Raises InvalidRequestError.
    """
    try:
        claims = verify_jws(
            parse_compact(compact), current, expected_typ=INTRODUCTION_TYP
        ).claims  # 1
        members(claims, "introduction", required=_CLAIMS)  # 2
        integer(claims["iat"], "introduction.iat", minimum=0)
        if claims["iss"] != expected_issuer:  # 3
            raise InvalidRequestError("introduction.iss: names another registry.")
        if claims["purpose"] != expected_purpose:
            raise InvalidRequestError("introduction.purpose: is not the purpose of this key.")
        return parse_jwk(claims["jwk"])  # 4
    except (EncodingError, InvalidKeyError, InvalidSignatureError) as error:
        raise InvalidRequestError(f"introduction: {error.description}") from None


def introduced_keys(
    pinned: PublicKey, introductions: Sequence[str], *, expected_issuer: str, expected_purpose: str
) -> list[PublicKey]:
    """The pinned key and all keys reached from it, oldest first; `introductions` in the order of
    the discovery document.

    Introductions by a key not reached yet are skipped: they may be older than the pinned key, or
    follow a key that was disabled. Raises InvalidRequestError for more than MAX_INTRODUCTIONS.
    """
    if len(introductions) > MAX_INTRODUCTIONS:
        raise InvalidRequestError(f"introductions: must be at most {MAX_INTRODUCTIONS}.")
    reached = {pinned.thumbprint: pinned}
    for compact in introductions:
        try:
            current = reached[str(parse_compact(compact).header.get("kid"))]
            following = verify_introduction(
                compact, current, expected_issuer=expected_issuer, expected_purpose=expected_purpose
            )
        except (EncodingError, InvalidRequestError, KeyError):
            continue
        reached.setdefault(following.thumbprint, following)
    return list(reached.values())
