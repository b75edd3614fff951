"""DER from key services: parsed strictly, and converted to what JWS needs."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from agentauth.protocol.errors import InvalidKeyError
from kms.backends import BackendError, der


@pytest.mark.parametrize("r", [1, 255, 2**247, 2**255])
@pytest.mark.parametrize("s", [1, 2**240, 2**256 - 1])
def test_KM_7_leading_zeros_of_r_and_s_are_kept(r: int, s: int) -> None:
    assert der.raw_signature(encode_dss_signature(r, s)) == r.to_bytes(32, "big") + s.to_bytes(
        32, "big"
    )


@pytest.mark.parametrize(
    "text", [b"", b"\x30", b"0" * 70, bytes.fromhex("3006020100020100") + b"x", bytes(64)]
)
def test_KM_7_malformed_DER_signature_is_refused(text: bytes) -> None:
    with pytest.raises(BackendError, match="unreadable"):
        der.raw_signature(text)


def test_KM_7_numbers_larger_than_the_curve_are_refused() -> None:
    with pytest.raises(BackendError, match="unreadable"):
        der.raw_signature(encode_dss_signature(2**256, 1))


@pytest.mark.parametrize("encoding", [Encoding.PEM, Encoding.DER])
def test_the_two_kinds_of_key_we_use_are_read_in_both_forms(encoding: Encoding) -> None:
    for private in (ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())):
        text = private.public_key().public_bytes(encoding, PublicFormat.SubjectPublicKeyInfo)
        public = der.public_key(text)
        signature = (
            private.sign(b"m")
            if isinstance(private, ed25519.Ed25519PrivateKey)
            else der.raw_signature(private.sign(b"m", ec.ECDSA(SHA256())))
        )
        public.verify(b"m", signature, alg=public.alg)


@pytest.mark.parametrize(
    "private", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())]
)
def test_other_kinds_of_key_are_refused(
    private: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey,
) -> None:
    text = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(BackendError, match="must be Ed25519 or P-256"):
        der.public_key(text)


@pytest.mark.parametrize("text", [b"", b"-----BEGIN PUBLIC KEY-----", bytes(44)])
def test_malformed_DER_key_is_refused(text: bytes) -> None:
    with pytest.raises(BackendError, match="unreadable"):
        der.public_key(text)


def test_a_weak_Ed25519_key_is_refused() -> None:
    # The point of order two, encoded as an Ed25519 key.
    text = bytes.fromhex("302a300506032b6570032100") + b"\xec" + b"\xff" * 30 + b"\x7f"
    with pytest.raises(InvalidKeyError):
        der.public_key(text)
