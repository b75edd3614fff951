"""Whatever a backend answers, only signatures that the recorded public half verifies are returned.

Third-party vectors say which those are.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest

from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import PublicKey, ed25519_public_key, p256_public_key, parse_jwk
from kms.backends import BackendError, PinnedSigner
from tests.vectors.shared import b, load

pytestmark = pytest.mark.vectors


class _Answering(NamedTuple):
    """A backend that answers with the signature of a vector."""

    key: PublicKey
    signature: bytes

    def public(self) -> PublicKey:
        return self.key

    def sign(self, message: bytes, alg: str) -> bytes:
        return self.signature


def _ed25519() -> Iterator[tuple[bool, PublicKey, bytes, bytes]]:
    for group in load("wycheproof_ed25519")["testGroups"]:
        key = ed25519_public_key(b(group["publicKey"]["pk"]))
        for case in group["tests"]:
            yield case["result"] == "valid", key, b(case["msg"]), b(case["sig"])


def _es256() -> Iterator[tuple[bool, PublicKey, bytes, bytes]]:
    for group in load("wycheproof_es256_p1363")["testGroups"]:
        point = b(group["publicKey"]["uncompressed"])
        key = p256_public_key(point[1:33], point[33:])
        for case in group["tests"]:
            yield case["result"] == "valid", key, b(case["msg"]), b(case["sig"])


def _rfc_8037() -> Iterator[tuple[bool, PublicKey, bytes, bytes]]:
    example = load("rfc_examples")["rfc8037"]
    key = parse_jwk({name: value for name, value in example["jwk_private"].items() if name != "d"})
    signed, _, signature = example["jws"].rpartition(".")
    jws = parse_compact(example["jws"])
    key.verify(jws.signing_input, jws.signature, alg=str(jws.header["alg"]))
    yield True, key, signed.encode(), b64u_decode(signature)
    yield False, key, signed.encode() + b".", b64u_decode(signature)


def _verdict(key: PublicKey, message: bytes, signature: bytes) -> bool:
    try:
        key.verify(message, signature, alg=key.alg)
    except AgentAuthError:
        return False
    return True


@pytest.mark.parametrize(
    ("vectors", "least"),
    [(_ed25519, 150), (_es256, 250), (_rfc_8037, 2)],
    ids=["ed25519", "es256", "rfc8037"],
)
def test_KM_17_a_signature_leaves_exactly_where_it_is_valid(vectors: Any, least: int) -> None:
    verdicts = set()
    asked = 0
    for valid, key, message, signature in vectors():
        assert _verdict(key, message, signature) is valid
        signer = PinnedSigner("vectors:key", _Answering(key, signature), key)
        if valid:
            assert signer.sign(message) == signature
        else:
            with pytest.raises(BackendError, match="a key other than"):
                signer.sign(message)
        verdicts.add(valid)
        asked += 1
    assert verdicts == {True, False}
    assert asked >= least
