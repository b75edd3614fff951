"""The statement that replaces an agent's key: signed by the new key, sent under the current one.

Which agent holds which key, and whether a key may still be used, is for the registry to check.
"""

from dataclasses import dataclass
from typing import Final

from .errors import EncodingError, InvalidKeyError, InvalidRequestError, InvalidSignatureError
from .jose import parse_compact, sign_compact, verify_jws
from .json_fields import integer, members, text
from .keys import PrivateMemberError, PublicKey, Signer, parse_jwk

KEY_CHANGE_TYP: Final = "agent-key+jwt"
# As for proofs: time for a clock that is off and a slow request. A statement works once, because
# `old_jkt` is no longer the agent's key afterwards.
WINDOW_SECONDS: Final = 60
_MAX_JTI: Final = 256
_CLAIMS: Final = ("aud", "iat", "jti", "agent_id", "old_jkt")


@dataclass(frozen=True, slots=True)
class VerifiedKeyChange:
    """A verified new key for one agent and one current key. Only `verify_key_change` makes it."""

    key: PublicKey
    agent_id: str
    old_jkt: str

    @property
    def jkt(self) -> str:
        """The thumbprint of the new key (RFC 7638)."""
        return self.key.thumbprint


def sign_key_change(
    new_key: Signer, *, audience: str, issued_at: int, jti: str, agent_id: str, old_jkt: str
) -> str:
    """Sign a key change with the new key (docs/protocol.md section 5); `audience` is the
    registry's issuer.

    Raises InvalidRequestError if both keys are the same.
    """
    _require_different_key(new_key.public, old_jkt)
    claims = {
        "aud": audience,
        "iat": issued_at,
        "jti": jti,
        "agent_id": agent_id,
        "old_jkt": old_jkt,
    }
    return sign_compact(claims, new_key, typ=KEY_CHANGE_TYP, header={"jwk": new_key.public.jwk})


def verify_key_change(
    compact: str, *, expected_audience: str, expected_agent_id: str, expected_old_jkt: str, now: int
) -> VerifiedKeyChange:
    """Verify that the holder of the new key wants it for this agent (section 5); `now` is in Unix
    seconds.

    1. Read the compact form.
    2. Take the key from the header: the statement introduces it.
    3. Check the signature and `typ`.
    4. Check that the claims are exactly the known ones, for this registry and for now.
    5. Check that it is for this agent and in place of this very key: otherwise a captured statement
       could be used again, or attach the key to another agent.
    6. Check that the key differs from the current one.

    Raises InvalidRequestError; PrivateMemberError if the header's key has a private member: the
    caller must bar `derives` for ever, if it is set.
    """
    try:
        jws = parse_compact(compact)  # 1
        key = parse_jwk(jws.header.get("jwk"))  # 2
        claims = verify_jws(jws, key, expected_typ=KEY_CHANGE_TYP).claims  # 3
    except PrivateMemberError:
        raise
    except (EncodingError, InvalidKeyError, InvalidSignatureError) as error:
        raise InvalidRequestError(f"new_key: {error.description}") from None
    members(claims, "new_key", required=_CLAIMS)  # 4
    issued_at = integer(claims["iat"], "new_key.iat", minimum=0)
    if claims["aud"] != expected_audience:
        raise InvalidRequestError("new_key.aud: names another registry.")
    # Limits how long a captured statement is of use, as for proofs (RFC 9449 section 11.1). One
    # signed in advance, with the `iat` of its later use, passes then.
    if abs(now - issued_at) > WINDOW_SECONDS:
        raise InvalidRequestError(
            f"new_key.iat: must be within {WINDOW_SECONDS} s of now (seconds since 1970)."
        )
    text(claims["jti"], "new_key.jti", maximum=_MAX_JTI)
    if claims["agent_id"] != expected_agent_id:  # 5
        raise InvalidRequestError("new_key.agent_id: names another agent.")
    if claims["old_jkt"] != expected_old_jkt:
        raise InvalidRequestError(
            "new_key.old_jkt: must be the thumbprint of the agent's current key."
        )
    _require_different_key(key, expected_old_jkt)  # 6
    return VerifiedKeyChange(key, expected_agent_id, expected_old_jkt)


def _require_different_key(key: PublicKey, old_jkt: str) -> None:
    # A rotation bars the current key for ever: an agent that kept it would be locked out.
    if key.thumbprint == old_jkt:
        raise InvalidRequestError("new_key: must differ from the agent's current key.")
