"""The registry's key set: its token keys, and the process keys that these certified."""

from collections.abc import Mapping
from typing import Final

from .errors import InvalidKeyError, InvalidRequestError
from .json_fields import items
from .keys import PrivateMemberError, PublicKey, parse_jwk
from .process_key_certificate import verify_certificate
from .token import TokenKey

# More than any registry publishes. Bounds the work that a key set can cause.
MAX_KEYS: Final = 10_000


def read_key_set(key_set: object, *, expected_issuer: str) -> dict[str, TokenKey]:
    """Read `/.well-known/jwks.json` (RFC 7517 section 5): keys by `kid`, ready for
    `token.verify_access_token`.

    A key with a `process_key_certificate` counts only if a key of the same set without one
    certified it. Otherwise it is left out, as is a key of a type that we cannot read.

    Raises InvalidRequestError for the whole set if it is no key set, if any key shows a private
    member, or if a key that we can read has no `kid`, one that appears twice, or, with a
    certificate, one that is not its thumbprint.
    """
    body = key_set.get("keys") if isinstance(key_set, Mapping) else None
    own: dict[str, PublicKey] = {}
    certified: list[tuple[PublicKey, object]] = []
    kids: set[str] = set()
    for jwk in items(body, "keys", minimum=0, maximum=MAX_KEYS):
        key = _key(jwk)
        if key is None:
            continue
        assert isinstance(jwk, dict)
        kid = jwk.get("kid")
        if not isinstance(kid, str):
            raise InvalidRequestError("keys: each key needs a `kid`.")
        # Readers differ in which of two equal kids wins.
        if kid in kids:
            raise InvalidRequestError("keys: a `kid` appears twice.")
        kids.add(kid)
        if "certificate" not in jwk:
            own[kid] = key
        elif kid == key.thumbprint:
            certified.append((key, jwk["certificate"]))
        else:
            raise InvalidRequestError("keys: the `kid` of a certified key is not its thumbprint.")
    found: dict[str, TokenKey] = dict(own)
    for key, compact in certified:
        try:
            certified_key = verify_certificate(
                str(compact), keys=own, expected_issuer=expected_issuer
            ).key
        except InvalidRequestError:
            continue
        # A certificate copied from another key of the set gives this one nothing.
        if certified_key.key == key:
            found[key.thumbprint] = certified_key
    return found


def _key(jwk: object) -> PublicKey | None:
    try:
        return parse_jwk(jwk)
    except PrivateMemberError as error:
        raise InvalidRequestError("keys: must not contain a private member.") from error
    except InvalidKeyError:
        # A type of a later version (RFC 7517 section 5: ignore it), or a malformed key. A token
        # that names it is `unknown`.
        return None
