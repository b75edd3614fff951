"""Keys: only strict Ed25519 and P-256, no private members, no weak points, signatures in one form."""

import pickle

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import InvalidKeyError, InvalidSignatureError
from agentauth.protocol.keys import (
    LocalSigner,
    PrivateKey,
    PrivateMemberError,
    _check_ed25519_signature,
    _der_signature,
    ed25519_public_key,
    parse_jwk,
)

# The example key of RFC 8037 appendix A, its secret and its thumbprint.
RFC8037_D = "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"
RFC8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
# The example key of RFC 9449 section 4 and its thumbprint of section 6.
RFC9449 = {
    "kty": "EC",
    "crv": "P-256",
    "x": "l8tFrhx-34tV3hRICRDY9zCkDlpBhF42UQUfWVAWBFs",
    "y": "9VE4jf_Ok_o64zbTTlcuNJajHmt6v9TDVrU0CdvGRDA",
}
FIELD = 2**255 - 19
ED25519_ORDER = 2**252 + 27742317777372353535851937790883648493
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def test_thumbprints_are_those_of_the_standards() -> None:
    assert parse_jwk(RFC8037).thumbprint == "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"
    assert parse_jwk(RFC9449).thumbprint == "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"


def test_a_key_keeps_only_its_public_members() -> None:
    key = parse_jwk(
        {
            **RFC8037,
            "use": "sig",
            "key_ops": ["verify"],
            "alg": "Ed25519",
            "kid": "a",
            "x5u": "http://127.0.0.1:9/",
        }
    )
    assert key.jwk == RFC8037
    assert (key.kty, key.alg) == ("OKP", "EdDSA")
    assert parse_jwk(RFC9449).jwk == RFC9449
    assert (parse_jwk(RFC9449).kty, parse_jwk(RFC9449).alg) == ("EC", "ES256")
    assert key == parse_jwk(RFC8037)
    assert key != parse_jwk(RFC9449)


@pytest.mark.parametrize(
    "change",
    [
        {"kty": "EC"},
        {"kty": "oct"},
        {"kty": ["OKP"]},
        {"crv": "X25519"},
        {"crv": "Ed448"},
        {"x": None},
        {"x": 5},
        {"x": RFC8037["x"] + "="},
        {"x": RFC8037["x"][:-2]},
        {"x": RFC8037["x"] + "AA"},
        {"x": RFC8037["x"][:-1] + "p"},
        {"alg": "ES256"},
        {"alg": None},
        {"alg": []},
        {"use": "enc"},
        {"use": None},
        {"key_ops": ["sign"]},
        {"key_ops": "verify"},
        {"key_ops": None},
    ],
)
def test_a_jwk_outside_the_policy_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidKeyError):
        parse_jwk({**RFC8037, **change})


def test_a_missing_coordinate_is_named() -> None:
    for jwk, name in ((RFC8037, "x"), (RFC9449, "y")):
        with pytest.raises(InvalidKeyError, match=f"The key's {name} is missing"):
            parse_jwk({member: value for member, value in jwk.items() if member != name})


@pytest.mark.parametrize("value", [None, [], "x", 1, [RFC8037]])
def test_a_key_is_an_object(value: object) -> None:
    with pytest.raises(InvalidKeyError):
        parse_jwk(value)


@pytest.mark.parametrize(
    "change",
    [
        {"x": RFC9449["y"], "y": RFC9449["x"]},
        {"x": b64u_encode(bytes(32)), "y": b64u_encode(bytes(32))},
        {"y": b64u_encode(b64u_decode(RFC9449["y"])[:31])},
        {"y": b64u_encode(b"\0" + b64u_decode(RFC9449["y"]))},
        {"y": None},
        {"crv": "P-384"},
        {"alg": "EdDSA"},
        {"alg": "ES521"},
        {"kty": "RSA"},
        {"x": b64u_encode(b"\xff" * 32)},
    ],
)
def test_a_p256_key_off_the_curve_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InvalidKeyError):
        parse_jwk({**RFC9449, **change})


def test_a_true_private_member_names_the_key_to_bar() -> None:
    with pytest.raises(PrivateMemberError) as caught:
        parse_jwk({**RFC8037, "d": RFC8037_D})
    assert caught.value.derives == parse_jwk(RFC8037)
    assert "private member" in caught.value.description
    assert RFC8037_D not in str(caught.value)


def test_a_true_private_member_of_p256_names_the_key_to_bar() -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    public = PrivateKey(private).public
    secret = b64u_encode(private.private_numbers().private_value.to_bytes(32, "big"))
    padded = b64u_encode(b"\0" + b64u_decode(secret))
    for d in (secret, padded):
        with pytest.raises(PrivateMemberError) as caught:
            parse_jwk({**public.jwk, "d": d})
        assert caught.value.derives == public


@pytest.mark.parametrize(
    "d",
    [
        b64u_encode(b"\1" * 32),
        b64u_encode(b"\1"),
        "=",
        None,
        5,
        b64u_encode(bytes(32)),
        b64u_encode(b"\xff" * 400),
    ],
)
@pytest.mark.parametrize("jwk", [RFC8037, RFC9449])
def test_invented_private_member_derives_no_key(jwk: dict[str, str], d: object) -> None:
    with pytest.raises(PrivateMemberError) as caught:
        parse_jwk({**jwk, "d": d})
    assert caught.value.derives is None


@pytest.mark.parametrize("member", ["p", "q", "dp", "dq", "qi", "oth", "k"])
def test_every_private_member_is_refused(member: str) -> None:
    with pytest.raises(PrivateMemberError):
        parse_jwk({**RFC8037, member: "AA"})


# The last two are those of order eight.
WEAK = [
    *(0, 1, FIELD - 1, FIELD, FIELD + 1, FIELD + 3, 2**255 - 1),
    0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826,
    0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7,
]


@pytest.mark.parametrize("y", WEAK)
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_weak_and_non_canonical_ed25519_keys_are_refused(y: int, sign: int) -> None:
    for registered in (False, True):
        with pytest.raises(InvalidKeyError):
            ed25519_public_key((y | sign).to_bytes(32, "little"), registered=registered)


@pytest.mark.parametrize("y", WEAK)
def test_weak_and_non_canonical_signatures_are_refused_under_any_library(y: int) -> None:
    signature = PrivateKey.generate().sign(b"m")
    _check_ed25519_signature(signature)
    _check_ed25519_signature(signature[:32] + (ED25519_ORDER - 1).to_bytes(32, "little"))
    for bad in (
        y.to_bytes(32, "little") + signature[32:],
        signature[:32] + ED25519_ORDER.to_bytes(32, "little"),
    ):
        with pytest.raises(InvalidSignatureError):
            _check_ed25519_signature(bad)


def test_a_weak_key_would_accept_any_message_without_the_check() -> None:
    # The identity point as key, R = the identity, S = 0: the library by itself accepts this as a
    # signature over anything.
    identity = (1).to_bytes(32, "little")
    ed25519.Ed25519PublicKey.from_public_bytes(identity).verify(identity + bytes(32), b"anything")
    with pytest.raises(InvalidKeyError):
        ed25519_public_key(identity)


def test_an_es256_signature_out_of_range_is_refused_under_any_library() -> None:
    number = bytes(31) + b"\x01"
    largest = (P256_ORDER - 1).to_bytes(32, "big")
    assert _der_signature(number + largest) != _der_signature(largest + number)
    for bad in (bytes(32), P256_ORDER.to_bytes(32, "big")):
        for signature in (bad + number, number + bad):
            with pytest.raises(InvalidSignatureError):
                _der_signature(signature)


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_signature_verifies_and_a_changed_one_does_not(alg: str) -> None:
    key = PrivateKey.generate("EdDSA" if alg == "EdDSA" else "ES256")
    signature = key.sign(b"message")
    key.public.verify(b"message", signature, alg=alg)
    for bad in (
        signature[:-1],
        signature + b"\0",
        b"",
        bytes(64),
        b"\xff" * 64,
        signature[32:] + signature[:32],
    ):
        with pytest.raises(InvalidSignatureError):
            key.public.verify(b"message", bad, alg=alg)
    with pytest.raises(InvalidSignatureError):
        key.public.verify(b"massage", signature, alg=alg)
    with pytest.raises(InvalidSignatureError):
        key.public.verify(b"message", signature, alg="ES256" if alg == "EdDSA" else "EdDSA")


def test_both_names_of_ed25519_are_accepted() -> None:
    key = PrivateKey.generate()
    key.public.verify(b"m", key.sign(b"m"), alg="Ed25519")
    for name in ("none", "HS256", "eddsa", "", "RS256"):
        with pytest.raises(InvalidSignatureError):
            key.public.verify(b"m", key.sign(b"m"), alg=name)


def test_an_es256_signature_is_raw_and_in_range() -> None:
    key = PrivateKey.generate("ES256")
    signature = key.sign(b"m")
    r, s = signature[:32], int.from_bytes(signature[32:], "big")
    key.public.verify(b"m", r + (P256_ORDER - s).to_bytes(32, "big"), alg="ES256")
    for bad in (
        r + bytes(32),
        bytes(32) + signature[32:],
        r + P256_ORDER.to_bytes(32, "big"),
        r + b"\0" + signature[32:],  # the same numbers in 65 bytes
    ):
        with pytest.raises(InvalidSignatureError):
            key.public.verify(b"m", bad, alg="ES256")


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_private_key_survives_its_file_and_is_never_shown(alg: str) -> None:
    key = PrivateKey.generate("EdDSA" if alg == "EdDSA" else "ES256")
    pem = key.to_pem()
    again = PrivateKey.from_pem(pem)
    assert again.public == key.public
    signer = LocalSigner(again)
    assert (signer.kid, signer.alg, signer.public) == (key.public.thumbprint, alg, key.public)
    assert LocalSigner(again, "k1").kid == "k1"
    key.public.verify(b"m", signer.sign(b"m"), alg=alg)
    secret = pem.decode().splitlines()[1][-16:]
    for shown in (repr(key), str(key), repr(signer), repr(key.public)):
        assert secret not in shown
    with pytest.raises(TypeError):
        pickle.dumps(key)


def test_only_our_key_types_are_read_from_a_file() -> None:
    other: list[rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey] = [
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP384R1()),
    ]
    pems = [
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        for key in other
    ]
    locked = ed25519.Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"x"),
    )
    for pem in [
        *pems,
        locked,
        b"",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ]:
        with pytest.raises(InvalidKeyError):
            PrivateKey.from_pem(pem)
