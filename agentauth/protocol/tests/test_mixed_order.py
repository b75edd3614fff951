"""JK-22: an Ed25519 key of mixed order is refused wherever a public key is read."""

import secrets
from collections.abc import Callable

import cbor2
import pytest

from agentauth.protocol.agent_manifest import MANIFEST_TYP, verify_manifest
from agentauth.protocol.cose import read_passkey
from agentauth.protocol.dpop import make_proof, verify_proof
from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import AgentAuthError, InvalidKeyError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_change import KEY_CHANGE_TYP, verify_key_change
from agentauth.protocol.key_introduction import INTRODUCTION_TYP, verify_introduction
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.keys import LocalSigner, PrivateKey, Signer, ed25519_public_key, parse_jwk
from agentauth.protocol.process_key_certificate import CERTIFICATE_TYP, verify_certificate
from agentauth.protocol.signed_notes import parse_vkey, verifier_key
from agentauth.protocol.tests import (
    test_agent_manifest,
    test_key_change,
    test_process_key_certificate,
)
from agentauth.protocol.tests.mixed_order import SMALL, MixedSigner, Point, encoded, mixed

ISSUER = "https://registry.example"
ROOT = LocalSigner(PrivateKey.generate())


def jwk(key: Signer) -> None:
    parse_jwk(key.public.jwk)


def manifest(key: Signer) -> None:
    header = {"jwk": key.public.jwk}
    compact = sign_compact(test_agent_manifest.CLAIMS, key, typ=MANIFEST_TYP, header=header)
    verify_manifest(compact, expected_audience=ISSUER, now=test_agent_manifest.NOW)


def key_change(key: Signer) -> None:
    header = {"jwk": key.public.jwk}
    compact = sign_compact(test_key_change.CLAIMS, key, typ=KEY_CHANGE_TYP, header=header)
    verify_key_change(
        compact,
        expected_audience=ISSUER,
        expected_agent_id=test_key_change.AGENT_ID,
        expected_old_jkt=test_key_change.OLD.kid,
        now=test_key_change.NOW,
    )


def introduction(key: Signer) -> None:
    claims = {"iss": ISSUER, "purpose": "token", "iat": 1, "jwk": key.public.jwk}
    compact = sign_compact(claims, ROOT, typ=INTRODUCTION_TYP, header={"kid": ROOT.kid})
    verify_introduction(compact, ROOT.public, expected_issuer=ISSUER, expected_purpose="token")


def certificate(key: Signer) -> None:
    claims = test_process_key_certificate.CLAIMS | {"sub": key.kid, "cnf": {"jwk": key.public.jwk}}
    compact = sign_compact(claims, ROOT, typ=CERTIFICATE_TYP, header={"kid": ROOT.kid})
    verify_certificate(compact, keys={ROOT.kid: ROOT.public}, expected_issuer=claims["iss"])


def key_set(key: Signer) -> None:
    found = read_key_set({"keys": [key.public.jwk | {"kid": key.kid}]}, expected_issuer=ISSUER)
    # A key that cannot be read is left out of a set; the others still count.
    if key.kid not in found:
        raise InvalidKeyError("It was left out.")


def log_key(key: Signer) -> None:
    parse_vkey(verifier_key("registry.example/v1/audit", key.public))


def passkey(key: Signer) -> None:
    read_passkey(cbor2.dumps({1: 1, 3: -8, -1: 6, -2: b64u_decode(key.public.x)}))


ENTRANCES = [
    jwk, manifest, key_change, introduction, certificate, key_set, log_key, passkey,
]  # fmt: skip


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_JK_22_a_key_of_mixed_order_is_refused_where_keys_come_in(
    entrance: Callable[[Signer], None],
) -> None:
    entrance(LocalSigner(PrivateKey.generate()))
    for small in SMALL:
        with pytest.raises(AgentAuthError):
            entrance(MixedSigner(small))


@pytest.mark.parametrize("small", SMALL)
def test_JK_22_every_component_of_small_order_is_found(small: Point) -> None:
    """Also of order 2: libsodium before 1.0.20 of 2025-12-30 accepted those (CVE-2025-69277)."""
    true = b64u_decode(PrivateKey.generate().public.x)
    assert ed25519_public_key(mixed(true, (0, 1))) == ed25519_public_key(true)
    for raw in (mixed(true, small), encoded(small)):
        with pytest.raises(InvalidKeyError):
            ed25519_public_key(raw)


def test_JK_22_bytes_off_the_curve_are_refused_as_a_key() -> None:
    refused = 0
    for _ in range(64):
        try:
            ed25519_public_key(secrets.token_bytes(32))
        except InvalidKeyError:
            refused += 1
    # One in sixteen is a point of the group.
    assert refused > 32


def test_JK_22_only_a_proof_is_read_before_its_key_is_compared() -> None:
    """Its signature verifies. Such a key is kept out because nothing registers it."""
    key = MixedSigner()
    proof = make_proof(key, method="GET", url="https://sp.example/x", iat=1, jti="j")
    read = verify_proof(
        proof,
        expected_method="GET",
        expected_url="https://sp.example/x",
        access_token=None,
        body=None,
        now=1,
    )
    assert read.jkt == key.kid
