"""Certificates: a token key of the registry states what a process's own key may sign, and until
when.

A certificate is verified once, with the key set, and becomes a `CertifiedKey`; the checks per token
are in `token.py`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .errors import EncodingError, InvalidKeyError, InvalidRequestError, InvalidSignatureError
from .identifiers import is_id
from .jose import parse_compact, sign_compact, signing_input, verify_jws
from .json_fields import integer, members
from .keys import PublicKey, Signer, parse_jwk
from .token import MAX_TOKEN_SECONDS, CertifiedKey

CERTIFICATE_TYP: Final = "key-certificate+jwt"
CERTIFIED_PURPOSE: Final = "token"
MAX_CERTIFICATE_SECONDS: Final = 86_400
MAX_CERTIFICATE_BYTES: Final = 2_048
_CLAIMS: Final = (
    "iss",
    "sub",
    "cnf",
    "purpose",
    "nbf",
    "exp",
    "max_token_seconds",
    "instance",
    "jti",
)
_INSTANCE: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


@dataclass(frozen=True, slots=True)
class Certificate:
    """A verified certificate.

    `serial` is its id, `instance` the process that holds the private key.
    """

    serial: str
    instance: str
    key: CertifiedKey


def sign_certificate(
    signer: Signer,
    subject: PublicKey,
    *,
    issuer: str,
    serial: str,
    instance: str,
    not_before: int,
    not_after: int,
    max_token_seconds: int = MAX_TOKEN_SECONDS,
) -> str:
    """Sign a certificate with `signer`, a token key, for the Ed25519 key `subject`.

    Times are in Unix seconds. Raises InvalidRequestError for what `verify_certificate` would
    refuse, and what the signer raises.
    """
    claims = {
        "iss": issuer,
        "sub": subject.thumbprint,
        "cnf": {"jwk": subject.jwk},
        "purpose": CERTIFIED_PURPOSE,
        "nbf": not_before,
        "exp": not_after,
        "max_token_seconds": max_token_seconds,
        "instance": instance,
        "jti": serial,
    }
    # Check before signing: a signature on a bad certificate could not be taken back.
    _read(claims, signer.public, issuer)
    return sign_compact(claims, signer, typ=CERTIFICATE_TYP, header={"kid": signer.kid})


def verify_certificate(
    compact: str, *, keys: Mapping[str, PublicKey], expected_issuer: str
) -> Certificate:
    """Verify a certificate by one of the registry's token `keys` (by `kid`).

    Each token's check, not this one, compares its times with now.

    1. Compact JWS within 2,048 bytes. 2. `kid` is one of `keys`. 3. Signature and `typ`. 4. Header
    of exactly `alg`, `kid`, `typ`, and both parts in canonical JSON: one certificate has one text.
    5. Exactly the known claims, each in its form: this registry, purpose `token`, an Ed25519 key in
    `cnf` whose thumbprint is `sub` and which is not the issuer's, `nbf` < `exp` ≤ `nbf` + 86,400,
    `max_token_seconds` 1 to 900. Raises InvalidRequestError.

    `keys` have no certificate themselves: by type no certified key can be among them. So a stolen
    process key cannot certify another.
    """
    try:
        jws = parse_compact(compact, max_bytes=MAX_CERTIFICATE_BYTES)  # 1
        kid = jws.header.get("kid")  # 2
        issuer_key = keys.get(kid) if isinstance(kid, str) else None
        if issuer_key is None:
            raise InvalidRequestError("certificate: is not signed by a token key of the registry.")
        claims = verify_jws(jws, issuer_key, expected_typ=CERTIFICATE_TYP).claims  # 3
        written = signing_input(
            claims, typ=CERTIFICATE_TYP, alg=issuer_key.alg, header={"kid": kid}
        )
        if written != jws.signing_input:  # 4
            raise InvalidRequestError("certificate: is not in canonical form.")
    except (EncodingError, InvalidSignatureError) as error:
        raise InvalidRequestError(f"certificate: {error.description}") from None
    return _read(claims, issuer_key, expected_issuer)  # 5


def _read(claims: dict[str, object], issuer_key: PublicKey, expected_issuer: str) -> Certificate:
    # Exactly these: an unknown claim might be a limit that we would not enforce.
    members(claims, "certificate", required=_CLAIMS)
    if claims["iss"] != expected_issuer:
        raise InvalidRequestError("certificate.iss: names another registry.")
    if claims["purpose"] != CERTIFIED_PURPOSE:
        raise InvalidRequestError("certificate.purpose: must be token.")
    cnf = members(claims["cnf"], "certificate.cnf", required=("jwk",))
    jwk = members(cnf["jwk"], "certificate.cnf.jwk", required=("kty", "crv", "x"))
    try:
        subject = parse_jwk(jwk)
    except InvalidKeyError as error:
        raise InvalidRequestError(f"certificate.cnf.jwk: {error.description}") from None
    if claims["sub"] != subject.thumbprint:
        raise InvalidRequestError("certificate.sub: is not the thumbprint of cnf.jwk.")
    if subject == issuer_key:
        raise InvalidRequestError("certificate: must not certify its own issuer.")
    not_before = integer(claims["nbf"], "certificate.nbf", minimum=0)
    latest = not_before + MAX_CERTIFICATE_SECONDS
    not_after = integer(claims["exp"], "certificate.exp", minimum=not_before + 1, maximum=latest)
    life = integer(
        claims["max_token_seconds"],
        "certificate.max_token_seconds",
        minimum=1,
        maximum=MAX_TOKEN_SECONDS,
    )
    serial, instance = claims["jti"], claims["instance"]
    if not isinstance(serial, str) or not is_id(serial):
        raise InvalidRequestError("certificate.jti: must be an id.")
    if not isinstance(instance, str) or not _INSTANCE.fullmatch(instance):
        raise InvalidRequestError(
            "certificate.instance: must be 1 to 128 characters of A-Za-z0-9._:-."
        )
    return Certificate(serial, instance, CertifiedKey(subject, not_before, not_after, life))
