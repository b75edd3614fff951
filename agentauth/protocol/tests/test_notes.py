"""Verifier keys of signed notes: the published example to the byte, and what cannot be one."""

import pytest

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import PrivateKey, parse_jwk
from agentauth.protocol.notes import verifier_key

# From the documentation of golang.org/x/mod/sumdb/note, where the format comes from.
PUBLISHED = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
PUBLISHED_KEY = bytes.fromhex("1a5cd907143c384c41e830c5bce12aa8817ec5649aaabf2c31388b35b2d744d6")


def test_the_published_verifier_key_comes_out_to_the_byte() -> None:
    key = parse_jwk({"kty": "OKP", "crv": "Ed25519", "x": b64u_encode(PUBLISHED_KEY)})
    assert verifier_key("PeterNeumann", key) == PUBLISHED


@pytest.mark.parametrize("name", ["", "a b", "a+b", "a\n", "a\u00a0b"])
def test_a_name_a_note_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        verifier_key(name, PrivateKey.generate().public)


def test_only_ed25519_keys_sign_notes() -> None:
    with pytest.raises(InvalidKeyError):
        verifier_key("a", PrivateKey.generate("ES256").public)
