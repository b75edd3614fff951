"""Approval receipts: a person's signed decision that anyone can verify later without this server.

A receipt contains the statement, the passkey's assertion and the text that the person read, signed
by the registry's `receipt` key.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from .cose import read_passkey
from .encoding import b64u_decode, b64u_encode, read_object, sha256
from .errors import AgentAuthError, InvalidReceiptError
from .jose import parse_compact, sign_compact, verify_jws
from .json_fields import members, text
from .keys import PublicKey, Signer
from .passkey_statements import Statement, consent_sha256, parse_statement
from .url_normalization import split_url

RECEIPT_TYP: Final = "approval-receipt+jwt"
MAX_RECEIPT_BYTES: Final = 65_536
MAX_CONSENT_TEXT: Final = 16_384
MAX_CLIENT_DATA_BYTES: Final = 4_096
_BINARY: Final = (
    "credential_id",
    "credential_public_key",
    "authenticator_data",
    "client_data_json",
    "signature",
)
_MEMBERS: Final = ("statement", "human_id", "consent_text", *_BINARY)

# WebAuthn L3 section 6.1: 32 bytes of rpIdHash, one of flags, four of counter.
_HEAD_BYTES: Final = 37
_UP, _UV, _BE, _BS, _AT, _ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt whose signatures were all verified. Only `verify_receipt` returns one.

    Both signatures cover the statement and, through a hash in it, the consent text. The registry
    alone vouches for the rest: a passkey signs neither its id nor its public key. So only the
    registry says that `credential_id`, a passkey with `passkey_alg`, belongs to `human_id`.
    """

    statement: Statement
    kid: str
    credential_id: bytes
    human_id: str
    passkey_alg: str
    consent_text: str


def build_receipt(
    statement: Statement,
    *,
    credential_id: bytes,
    credential_public_key: bytes,
    human_id: str,
    authenticator_data: bytes,
    client_data_json: bytes,
    signature: bytes,
    consent_text: str,
    signer: Signer,
) -> str:
    """Sign the receipt of one decision as a compact JWS of at most 65,536 bytes (docs/protocol.md
    section 6).

    `credential_public_key` is the COSE_Key, `human_id` its owner in the registry. `credential_id`,
    `authenticator_data`, `client_data_json` and `signature` are the assertion as received. Runs
    steps 2 to 7 of `verify_receipt`, so a receipt that would not verify is never signed. Raises
    InvalidReceiptError, and what the signer raises.
    """
    claims: dict[str, object] = {
        "statement": statement.to_json(),
        "human_id": human_id,
        "consent_text": consent_text,
        "credential_id": b64u_encode(credential_id),
        "credential_public_key": b64u_encode(credential_public_key),
        "authenticator_data": b64u_encode(authenticator_data),
        "client_data_json": b64u_encode(client_data_json),
        "signature": b64u_encode(signature),
    }
    try:
        _check_claims(claims, expected_issuer=str(statement.body["issuer"]), kid=signer.kid)
    except InvalidReceiptError:
        raise
    except AgentAuthError as error:
        raise InvalidReceiptError(f"The receipt would not verify: {error.description}") from None
    compact = sign_compact(claims, signer, typ=RECEIPT_TYP, header={"kid": signer.kid})
    if len(compact) > MAX_RECEIPT_BYTES:
        raise InvalidReceiptError("The receipt would be longer than 65,536 bytes.")
    return compact


def verify_receipt(
    compact: str, *, keys: Mapping[str, PublicKey], expected_issuer: str
) -> VerifiedReceipt:
    """Verify a receipt offline; `keys` are the trusted receipt keys by `kid`, including retired.

    1. The registry's signature, by a trusted key, over a JWS of this `typ`. 2. The claims, exactly.
    3. The statement names the expected issuer, and the registry says that the passkey belongs to
    the human whom the statement names. 4. The statement contains the hash of the text the person
    read. 5. The passkey was asked for this statement, on the issuer's own page. 6. The person was
    present and verified. 7. The passkey's signature. No clock: a decision does not expire.

    Raises InvalidReceiptError (docs/protocol.md section 6).
    """
    try:
        # 1. `kid` selects among trusted keys; nothing in the receipt can add one.
        jws = parse_compact(compact, max_bytes=MAX_RECEIPT_BYTES)
        kid = _trusted_kid(jws.header.get("kid"), keys)
        verified = verify_jws(jws, keys[kid], expected_typ=RECEIPT_TYP)
        return _check_claims(verified.claims, expected_issuer=expected_issuer, kid=kid)
    except InvalidReceiptError:
        raise
    except AgentAuthError as error:
        raise InvalidReceiptError(f"The receipt is not valid: {error.description}") from None


def _trusted_kid(kid: object, keys: Mapping[str, PublicKey]) -> str:
    if not isinstance(kid, str) or kid not in keys:
        raise InvalidReceiptError("The receipt is signed by a key that is not trusted here.")
    return kid


def _check_claims(claims: dict[str, object], *, expected_issuer: str, kid: str) -> VerifiedReceipt:
    """Steps 2 to 7 of `verify_receipt`. Raises AgentAuthError."""
    # 2.
    body = members(claims, "receipt", required=_MEMBERS)
    raw = {name: b64u_decode(text(body[name], name, maximum=MAX_RECEIPT_BYTES)) for name in _BINARY}
    statement = parse_statement(body["statement"])
    # 3. Otherwise a statement that names one human could be signed with another human's passkey.
    if statement.body["issuer"] != expected_issuer:
        raise InvalidReceiptError("The receipt comes from another issuer.")
    if body["human_id"] != statement.body["human_id"]:
        raise InvalidReceiptError(
            "The passkey does not belong to the human that the statement names."
        )
    # 4.
    consent = text(body["consent_text"], "consent_text", maximum=MAX_CONSENT_TEXT)
    if consent_sha256(consent) != statement.body["consent_sha256"]:
        raise InvalidReceiptError("The consent text is not the one that was signed.")
    # 5. and 6.
    _check_client_data(raw["client_data_json"], statement)
    _check_authenticator_data(raw["authenticator_data"], str(statement.body["rp_id"]))
    # 7. WebAuthn L3 section 7.2, steps 20 and 21.
    passkey = read_passkey(raw["credential_public_key"])
    passkey.verify(raw["authenticator_data"] + sha256(raw["client_data_json"]), raw["signature"])
    return VerifiedReceipt(
        statement, kid, raw["credential_id"], str(body["human_id"]), passkey.alg, consent
    )


def _check_client_data(data: bytes, statement: Statement) -> None:
    """Check what the browser recorded: which challenge it gave the passkey, and on which page."""
    client = read_object(data, max_bytes=MAX_CLIENT_DATA_BYTES)
    # WebAuthn L3 section 5.8.1: otherwise the signature of a registration could be shown as a
    # decision.
    if client.get("type") != "webauthn.get":
        raise InvalidReceiptError("The client data does not come from an assertion.")
    # Otherwise a signature over one statement could be shown for another. Compared as a string: a
    # lenient decoder would accept several encodings of one challenge.
    if client.get("challenge") != b64u_encode(statement.challenge()):
        raise InvalidReceiptError("The passkey was asked for another statement.")
    # A phishing page could relay a challenge of ours; its origin would show here.
    if client.get("origin") != split_url(str(statement.body["issuer"]))[0]:
        raise InvalidReceiptError("The passkey signed on a page of another origin.")
    # The embedding page could cover ours, so that the person reads something else.
    if client.get("crossOrigin", False) is not False or "topOrigin" in client:
        raise InvalidReceiptError("The passkey signed on an embedded page.")


def _check_authenticator_data(data: bytes, rp_id: str) -> None:
    """Check what the authenticator says: for which site, with the person present and verified."""
    if len(data) < _HEAD_BYTES:
        raise InvalidReceiptError("The authenticator data is too short.")
    if data[:32] != sha256(rp_id.encode("ascii")):
        raise InvalidReceiptError("The passkey signed for another site.")
    flags = data[32]
    # A touch alone (UP) shows that someone holds the device; PIN or biometrics (UV) show who.
    if not flags & _UP or not flags & _UV:
        raise InvalidReceiptError(
            "The passkey did not report that the person was present and verified (flags UP and UV)."
        )
    # WebAuthn L3 section 6.1.3 does not allow "backed up" without "can be backed up".
    if flags & _BS and not flags & _BE:
        raise InvalidReceiptError("The passkey's backup flags contradict each other.")
    # An assertion has no attested credential data, and has bytes after the head (extensions) if and
    # only if the ED flag is set.
    if flags & _AT or bool(flags & _ED) != (len(data) > _HEAD_BYTES):
        raise InvalidReceiptError("The authenticator data does not have the length its flags say.")
