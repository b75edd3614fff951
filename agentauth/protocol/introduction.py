"""How one key of the registry introduces the next: a statement under the present key that names its successor.

Whoever trusts one key of a purpose can walk from it to those that came after, without believing the server that
serves them. A disabled key introduces nobody: whoever made us disable it could have signed as well.
"""

from collections.abc import Sequence
from typing import Final

from .errors import EncodingError, InvalidKeyError, InvalidRequestError, InvalidSignatureError
from .jose import parse_compact, sign_compact, verify_jws
from .keys import PublicKey, Signer, parse_jwk
from .reading import integer, members

INTRODUCTION_TYP: Final = "key-introduction+jwt"
# More rotations than a purpose sees in a lifetime; a bound all the same.
MAX_INTRODUCTIONS: Final = 1_000
_CLAIMS: Final = ("iss", "purpose", "iat", "jwk")


def sign_introduction(
    present: Signer, following: PublicKey, *, issuer: str, purpose: str, issued_at: int
) -> str:
    """A compact JWS by the present key that names the following one (docs/protocol.md section 4)."""
    claims = {"iss": issuer, "purpose": purpose, "iat": issued_at, "jwk": following.jwk}
    return sign_compact(claims, present, typ=INTRODUCTION_TYP, header={"kid": present.kid})


def verify_introduction(
    compact: str, present: PublicKey, *, expected_issuer: str, expected_purpose: str
) -> PublicKey:
    """The key that `present` introduces.

    1. Signed by it, as this kind of object. 2. Exactly the known claims. 3. Of this registry and this purpose: a
    key of one purpose introduces none of another. 4. The following key passes every check of section 1.
    Raises InvalidRequestError.
    """
    try:
        claims = verify_jws(parse_compact(compact), present, expected_typ=INTRODUCTION_TYP).claims  # 1
        members(claims, "introduction", required=_CLAIMS)  # 2
        integer(claims["iat"], "introduction.iat", minimum=0)
        if claims["iss"] != expected_issuer:  # 3
            raise InvalidRequestError("introduction.iss: is another registry.")
        if claims["purpose"] != expected_purpose:
            raise InvalidRequestError("introduction.purpose: is another.")
        return parse_jwk(claims["jwk"])  # 4
    except (EncodingError, InvalidKeyError, InvalidSignatureError) as error:
        raise InvalidRequestError(f"introduction: {error.description}") from None


def introduced_keys(
    pinned: PublicKey, introductions: Sequence[str], *, expected_issuer: str, expected_purpose: str
) -> list[PublicKey]:
    """The pinned key and all that it leads to, oldest first; `introductions` as the discovery document lists them.

    What does not follow from a key reached so far is passed over: it may be older than the pinned key, or follow
    one that was disabled. Raises InvalidRequestError for more than MAX_INTRODUCTIONS.
    """
    if len(introductions) > MAX_INTRODUCTIONS:
        raise InvalidRequestError(f"introductions: are more than {MAX_INTRODUCTIONS}.")
    reached = {pinned.thumbprint: pinned}
    for compact in introductions:
        try:
            present = reached[str(parse_compact(compact).header.get("kid"))]
            following = verify_introduction(
                compact, present, expected_issuer=expected_issuer, expected_purpose=expected_purpose
            )
        except (EncodingError, InvalidRequestError, KeyError):
            continue
        reached.setdefault(following.thumbprint, following)
    return list(reached.values())
