"""Passkey ceremonies: the only module that uses the WebAuthn library; adds checks, fails closed."""

import hashlib
import io
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import cbor2
from django.contrib.auth import get_user_model
from webauthn import verify_authentication_response, verify_registration_response
from webauthn.authentication.verify_authentication_response import VerifiedAuthentication
from webauthn.helpers.cose import COSEAlgorithmIdentifier
from webauthn.helpers.structs import (
    AuthenticationCredential,
    AuthenticatorAssertionResponse,
    AuthenticatorAttestationResponse,
    CredentialDeviceType,
    RegistrationCredential,
)

from agentauth.protocol.cose import read_passkey
from agentauth.protocol.encoding import b64u_decode, b64u_encode, read_object
from agentauth.protocol.errors import AgentAuthError, InvalidAssertionError

if TYPE_CHECKING:
    from django.http import HttpRequest

    from registry.models import Human

# docs/protocol.md section 1. RS256 is accepted only for Windows Hello.
ALGORITHMS = (
    COSEAlgorithmIdentifier.EDDSA,
    COSEAlgorithmIdentifier.ECDSA_SHA_256,
    COSEAlgorithmIdentifier.RSASSA_PKCS1_v1_5_SHA_256,
)
CHALLENGE_BYTES = 32
CEREMONY_SECONDS = 300
MAX_CREDENTIAL_ID_BYTES = 1023  # WebAuthn L3 section 4, "credential id"
MAX_CLIENT_DATA_BYTES = 4096
MAX_AUTHENTICATOR_DATA_BYTES = 4096
MAX_ATTESTATION_BYTES = 16_384
MAX_SIGNATURE_BYTES = 1024
# We ask for no attestation, so a browser sends "none", or passes on a self-attested "packed".
# Accepting other formats would only expose their parsers.
FORMATS = ("none", "packed")

_RP_HASH = slice(0, 32)
_FLAGS = 32
_HEAD_BYTES = 37
_UP, _UV, _BE, _BS, _AT, _ED = 0x01, 0x04, 0x08, 0x10, 0x40, 0x80


@dataclass(frozen=True, slots=True)
class VerifiedAssertion:
    """A signature by a known passkey over the expected challenge, with user verification."""

    credential_id: bytes
    user_handle: bytes | None
    sign_count: int
    backup_eligible: bool
    backed_up: bool
    authenticator_data: bytes
    client_data_json: bytes
    signature: bytes


@dataclass(frozen=True, slots=True)
class VerifiedRegistration:
    """A new passkey: its id, its COSE public key as attested, and the properties it reports."""

    credential_id: bytes
    public_key: bytes
    sign_count: int
    aaguid: str
    backup_eligible: bool
    backed_up: bool
    transports: tuple[str, ...]


def new_challenge() -> bytes:
    return secrets.token_bytes(CHALLENGE_BYTES)


def creation_options(
    *,
    rp_id: str,
    challenge: bytes,
    user_handle: bytes,
    user_name: str,
    display_name: str,
    exclude: Sequence[bytes] = (),
) -> dict[str, Any]:
    """PublicKeyCredentialCreationOptionsJSON: a resident key, user verification, no attestation."""
    return {
        "rp": {"id": rp_id, "name": "AgentAuth"},
        "user": {"id": b64u_encode(user_handle), "name": user_name, "displayName": display_name},
        "challenge": b64u_encode(challenge),
        "pubKeyCredParams": [{"type": "public-key", "alg": int(alg)} for alg in ALGORITHMS],
        "timeout": CEREMONY_SECONDS * 1000,
        "attestation": "none",
        "authenticatorSelection": {
            "residentKey": "required",
            "requireResidentKey": True,
            "userVerification": "required",
        },
        "excludeCredentials": [{"type": "public-key", "id": b64u_encode(item)} for item in exclude],
    }


def request_options(*, rp_id: str, challenge: bytes, allow: Sequence[bytes] = ()) -> dict[str, Any]:
    """PublicKeyCredentialRequestOptionsJSON; if `allow` is empty, the browser offers all it has."""
    return {
        "rpId": rp_id,
        "challenge": b64u_encode(challenge),
        "timeout": CEREMONY_SECONDS * 1000,
        "userVerification": "required",
        "allowCredentials": [{"type": "public-key", "id": b64u_encode(item)} for item in allow],
    }


def verify_assertion(
    *,
    credential: object,
    expected_challenge: bytes,
    rp_id: str,
    origin: str,
    public_key: bytes,
    sign_count: int,
    expected_credential_id: bytes,
    expected_user_handle: bytes | None,
    expected_backup_eligible: bool | None,
) -> VerifiedAssertion:
    """Check a response of `navigator.credentials.get()` (WebAuthn L3 section 7.2).

    `credential` is the untrusted AuthenticationResponseJSON; `public_key` (COSE) and `sign_count`
    are the stored ones. The user handle may be absent if the ceremony named its credential; sign-in
    names none and requires one. `expected_backup_eligible` is None while unknown: the flag is fixed
    when a passkey is created, so another one means that another authenticator holds the key.

    1. shape and sizes  2. the requested credential and its owner  3. client data: type, challenge,
    origin, not embedded
    4. authenticator data: rp, presence, verification, backup flags as before, no extra bytes
    5. the key's algorithm  6. signature and counter, by the library

    Raises InvalidAssertionError.
    """
    # 1
    response = _response(credential)
    credential_id = credential_id_of(credential)
    client_data = _bytes(response, "clientDataJSON", MAX_CLIENT_DATA_BYTES)
    authenticator_data = _bytes(response, "authenticatorData", MAX_AUTHENTICATOR_DATA_BYTES)
    signature = _bytes(response, "signature", MAX_SIGNATURE_BYTES)
    handle = None if response.get("userHandle") is None else _bytes(response, "userHandle", 64)
    # 2
    if credential_id != expected_credential_id:
        raise _refusal("another passkey")
    if expected_user_handle is not None and handle not in (expected_user_handle, None):
        raise _refusal("another person's passkey")
    # 3
    _check_client_data(
        client_data, kind="webauthn.get", challenge=expected_challenge, origin=origin
    )
    # 4
    backup_eligible = _check_authenticator_data(
        authenticator_data, rp_id, expected_backup_eligible=expected_backup_eligible
    )
    # 5
    _check_public_key(public_key)
    # 6
    verified = _verify_signature(
        AuthenticationCredential(
            id=b64u_encode(credential_id),
            raw_id=credential_id,
            response=AuthenticatorAssertionResponse(
                client_data_json=client_data,
                authenticator_data=authenticator_data,
                signature=signature,
            ),
        ),
        challenge=expected_challenge,
        rp_id=rp_id,
        origin=origin,
        public_key=public_key,
        sign_count=sign_count,
    )
    return VerifiedAssertion(
        credential_id=credential_id,
        user_handle=handle,
        sign_count=verified.new_sign_count,
        backup_eligible=backup_eligible,
        backed_up=verified.credential_backed_up,
        authenticator_data=authenticator_data,
        client_data_json=client_data,
        signature=signature,
    )


def verify_registration(
    *, credential: object, expected_challenge: bytes, rp_id: str, origin: str
) -> VerifiedRegistration:
    """Check a response of `navigator.credentials.create()` (WebAuthn L3 section 7.1).

    An id that is registered already is refused by the database: the column is unique. Raises
    InvalidAssertionError.
    """
    response = _response(credential)
    credential_id = credential_id_of(credential)
    client_data = _bytes(response, "clientDataJSON", MAX_CLIENT_DATA_BYTES)
    attestation = _bytes(response, "attestationObject", MAX_ATTESTATION_BYTES)
    _check_client_data(
        client_data, kind="webauthn.create", challenge=expected_challenge, origin=origin
    )
    public_key = _attested_key(attestation, rp_id=rp_id, credential_id=credential_id)
    _check_public_key(public_key)
    try:
        verified = verify_registration_response(
            credential=RegistrationCredential(
                id=b64u_encode(credential_id),
                raw_id=credential_id,
                response=AuthenticatorAttestationResponse(
                    client_data_json=client_data, attestation_object=attestation
                ),
            ),
            expected_challenge=expected_challenge,
            expected_rp_id=rp_id,
            expected_origin=origin,
            require_user_verification=True,
            supported_pub_key_algs=list(ALGORITHMS),
        )
    except Exception as error:  # see verify_assertion
        raise _refusal("attestation") from error
    if verified.credential_id != credential_id or verified.credential_public_key != public_key:
        raise _refusal("attestation")
    return VerifiedRegistration(
        credential_id=credential_id,
        public_key=public_key,
        sign_count=verified.sign_count,
        aaguid=verified.aaguid,
        backup_eligible=verified.credential_device_type is CredentialDeviceType.MULTI_DEVICE,
        backed_up=verified.credential_backed_up,
        transports=_transports(response.get("transports")),
    )


def credential_id_of(credential: object) -> bytes:
    """The id an untrusted credential claims in `id` and `rawId`. Raises InvalidAssertionError."""
    _response(credential)
    assert isinstance(credential, Mapping)
    identifier = _bytes(credential, "id", MAX_CREDENTIAL_ID_BYTES)
    if credential.get("rawId") != credential["id"]:
        raise _refusal("two ids")
    return identifier


def _response(credential: object) -> Mapping[str, object]:
    if not isinstance(credential, Mapping) or credential.get("type") != "public-key":
        raise _refusal("shape")
    response = credential.get("response")
    if not isinstance(response, Mapping):
        raise _refusal("shape")
    return response


def _bytes(members: Mapping[Any, object], name: str, limit: int) -> bytes:
    text = members.get(name)
    if not isinstance(text, str) or not text or len(text) > limit * 4 // 3 + 3:
        raise _refusal(name)
    try:
        value = b64u_decode(text)
    except AgentAuthError as error:
        raise _refusal(name) from error
    if not 0 < len(value) <= limit:
        raise _refusal(name)
    return value


def _check_client_data(data: bytes, *, kind: str, challenge: bytes, origin: str) -> None:
    try:
        members = read_object(data, max_bytes=MAX_CLIENT_DATA_BYTES)
    except AgentAuthError as error:
        raise _refusal("client data") from error
    if members.get("type") != kind:
        raise _refusal("client data type")
    # Compared as text: the library decodes leniently, so several texts would match one challenge.
    if members.get("challenge") != b64u_encode(challenge):
        raise _refusal("challenge")
    if members.get("origin") != origin:
        raise _refusal("origin")
    # Strictly False or absent: an embedding page could cover what the human believes they sign.
    if members.get("crossOrigin", False) is not False or "topOrigin" in members:
        raise _refusal("embedded page")
    binding = members.get("tokenBinding")
    if binding is not None and (
        not isinstance(binding, Mapping) or binding.get("status") != "supported"
    ):
        raise _refusal("token binding")


def _check_head(data: bytes, rp_id: str) -> int:
    """Check rpIdHash and flags in the first 37 bytes. Returns the flags."""
    if len(data) < _HEAD_BYTES or data[_RP_HASH] != hashlib.sha256(rp_id.encode()).digest():
        raise _refusal("another site")
    flags = data[_FLAGS]
    if not flags & _UP or not flags & _UV:
        raise _refusal("person not present and verified")
    if flags & _BS and not flags & _BE:
        raise _refusal("backup flags")
    return flags


def _attested_key(attestation: bytes, *, rp_id: str, credential_id: bytes) -> bytes:
    """The COSE key in an attestation object. Raises InvalidAssertionError if anything is off."""
    document, rest = _read_cbor(attestation)
    if rest or not isinstance(document, dict) or document.get("fmt") not in FORMATS:
        raise _refusal("attestation")
    if not isinstance(document.get("attStmt"), dict):
        raise _refusal("attestation")
    data = document.get("authData")
    if not isinstance(data, bytes) or len(data) > MAX_AUTHENTICATOR_DATA_BYTES:
        raise _refusal("authenticator data")
    flags = _check_head(data, rp_id)
    if not flags & _AT:
        raise _refusal("no key")
    start = _HEAD_BYTES + 16 + 2  # AAGUID and the length of the id
    end = start + int.from_bytes(data[start - 2 : start], "big")
    if data[start:end] != credential_id:
        raise _refusal("two ids")
    _, rest = _read_cbor(data[end:])
    _extensions(rest, present=bool(flags & _ED))
    return data[end : len(data) - len(rest)]


def _check_authenticator_data(
    data: bytes, rp_id: str, *, expected_backup_eligible: bool | None
) -> bool:
    """Check an assertion's authenticator data; return whether the passkey may be backed up."""
    flags = _check_head(data, rp_id)
    if flags & _AT:
        raise _refusal("authenticator data")
    backup_eligible = bool(flags & _BE)
    if expected_backup_eligible not in (backup_eligible, None):
        raise _refusal("backup flags changed")
    _extensions(data[_HEAD_BYTES:], present=bool(flags & _ED))
    return backup_eligible


def _verify_signature(
    credential: AuthenticationCredential,
    *,
    challenge: bytes,
    rp_id: str,
    origin: str,
    public_key: bytes,
    sign_count: int,
) -> VerifiedAuthentication:
    """The library's check of signature and counter, with any of its errors as a refusal."""
    try:
        return verify_authentication_response(
            credential=credential,
            expected_challenge=challenge,
            expected_rp_id=rp_id,
            expected_origin=origin,
            credential_public_key=public_key,
            credential_current_sign_count=sign_count,
            require_user_verification=True,
        )
    # The library raises its own classes, but also TypeError, KeyError and ValueError.
    except Exception as error:
        raise _refusal("signature or counter") from error


def _extensions(rest: bytes, *, present: bool) -> None:
    """Check that `rest` is exactly one extension map if its flag is set, and empty otherwise."""
    if present:
        value, rest = _read_cbor(rest)
        if not isinstance(value, dict):
            raise _refusal("extensions")
    if rest:
        raise _refusal("leftover bytes")


def _read_cbor(data: bytes) -> tuple[object, bytes]:
    stream = io.BytesIO(data)
    try:
        value = cbor2.CBORDecoder(stream, allow_duplicate_keys=False, read_size=1).decode()
    except Exception as error:  # untrusted input, before any signature check: never answer 500
        raise _refusal("CBOR") from error
    return value, data[stream.tell() :]


def _check_public_key(cose: bytes) -> None:
    """Check for ES256, EdDSA or RS256 under the protocol's key rules (no small-order point).

    Uses the reader that verifies receipts: a key it cannot read could sign in but never decide.
    """
    try:
        read_passkey(cose)
    except AgentAuthError as error:
        raise _refusal("public key") from error


def _transports(value: object) -> tuple[str, ...]:
    known = ("ble", "cable", "hybrid", "internal", "nfc", "smart-card", "usb")
    return tuple(name for name in known if isinstance(value, list) and name in value)


def _refusal(what: str) -> InvalidAssertionError:
    # `what` names the failed check for logs and tests. It reveals nothing that the code does not.
    return InvalidAssertionError(f"The passkey's answer was not accepted ({what}). Try again.")


class PasskeyBackend:
    """Django's authentication backend: loads the human of a session and accepts no credentials.

    Sign-in goes through approvals.services, which passes a verified human to `login()`.
    """

    def authenticate(self, request: "HttpRequest | None", **_credentials: Any) -> None:
        return None

    def get_user(self, user_id: Any) -> "Human | None":
        """The human, if active, so that a suspension ends every session at its next request."""
        human: Human | None = get_user_model().objects.filter(pk=user_id).first()
        return human if human is not None and human.is_active else None
