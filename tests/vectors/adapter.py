"""Production functions in the form vector files need.

Every `…_outcome` gives the refusal, or None for acceptance; the plain names give True or False.
Only the protocol's own refusals are caught: any other exception is a crash, which a vector run
counts as a failure.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentauth.protocol.dpop import (
    authorization_header,
    check_binding,
    check_nonce,
    single_header,
    verify_proof,
)
from agentauth.protocol.encoding import b64u_decode
from agentauth.protocol.errors import AgentAuthError, InvalidKeyError, InvalidProofError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.keys import PublicKey, ed25519_public_key, parse_jwk
from agentauth.protocol.merkle_proofs import verify_consistency, verify_inclusion
from agentauth.protocol.token import TokenClaims, verify_token

Case = Mapping[str, Any]


def outcome(act: Callable[[], object]) -> AgentAuthError | None:
    try:
        act()
    except AgentAuthError as refusal:
        return refusal
    return None


def ed25519_verify(pk: bytes, msg: bytes, sig: bytes, *, registered: bool = True) -> bool:
    """By default as for a proof, whose key must match a registered one: vectors test signatures."""
    return (
        outcome(lambda: ed25519_public_key(pk, registered=registered).verify(msg, sig, alg="EdDSA"))
        is None
    )


def es256_verify(jwk: Mapping[str, str], msg: bytes, sig_p1363: bytes) -> bool:
    return outcome(lambda: parse_jwk(dict(jwk)).verify(msg, sig_p1363, alg="ES256")) is None


def jws_verify(compact: str, key: Mapping[str, Any]) -> bool:
    """These files sign plain texts without `typ`, so they test parser, key, signature."""

    def act() -> None:
        jws = parse_compact(compact)
        signer = select_key(key, jws.header.get("kid"))
        signer.verify(jws.signing_input, jws.signature, alg=str(jws.header["alg"]))

    return outcome(act) is None


def select_key(key: Mapping[str, Any], kid: object) -> PublicKey:
    """One key, or the key of a set that `kid` names. A bad key or duplicate name voids the set."""
    if "keys" not in key:
        return parse_jwk(dict(key))
    keys = issuer_keys(key)
    if kid not in keys:
        raise InvalidKeyError("The set has no such key.")
    return keys[str(kid)]


def issuer_keys(jwks: Mapping[str, Any]) -> dict[str, PublicKey]:
    keys = {jwk["kid"]: parse_jwk(jwk) for jwk in jwks["keys"]}
    if len(keys) != len(jwks["keys"]):
        raise InvalidKeyError("The set names a key twice.")
    return keys


def merkle_inclusion(
    index: int, size: int, leaf_hash: bytes, proof: Sequence[bytes], root: bytes
) -> bool:
    return outcome(lambda: verify_inclusion(index, size, leaf_hash, proof, root)) is None


def merkle_consistency(
    size1: int, size2: int, proof: Sequence[bytes], root1: bytes, root2: bytes
) -> bool:
    return outcome(lambda: verify_consistency(size1, size2, proof, root1, root2)) is None


def read_token(doc: Case, compact: str, now: int) -> TokenClaims:
    return verify_token(
        compact,
        keys=issuer_keys(doc["issuer_jwks"]),
        expected_issuer=doc["issuer"],
        expected_audience=doc["audience"],
        now=now,
    )[1]


def token_outcome(doc: Case, case: Case) -> AgentAuthError | None:
    return outcome(lambda: read_token(doc, case["token"], case.get("now", doc.get("now"))))


def token(doc: Case, case: Case) -> bool:
    return token_outcome(doc, case) is None


class ReplayMemory:
    """Stands in for the database's unique (jkt, jti), which verify swaps into; used here only."""

    def __init__(self) -> None:
        self._spent: set[tuple[str, str]] = set()

    def spend(self, jkt: str, jti: str) -> None:
        if (jkt, jti) in self._spent:
            raise InvalidProofError("The proof was used before.", reason="replayed")
        self._spent.add((jkt, jti))


def present(doc: Case, case: Case, memory: ReplayMemory) -> None:
    """One request at a service provider: the headers as the SDK reads them, then as
    `verifier.credential_checks.prepare` does: token, URL, proof, nonce, binding. The proof is spent
    last.
    """
    # Late, so that the other vectors run without Django.
    from verifier.credential_checks import _check_url

    access_token = authorization_header(case["authorization"])
    compact = single_header(case["dpop"])
    claims = read_token(doc, access_token, case["now"])
    _check_url(case["url"], doc["audience"])
    proof = verify_proof(
        compact,
        expected_method=case["method"],
        expected_url=case["url"],
        access_token=access_token,
        body=None,
        now=case["now"],
    )
    check_nonce(proof, accepted=(), required=False)
    check_binding(proof, expected_jkt=claims.jkt)
    memory.spend(proof.jkt, proof.jti)


def dpop_outcome(doc: Case, case: Case, send: Sequence[Case] = ()) -> AgentAuthError | None:
    memory = ReplayMemory()
    for earlier in send:
        present(doc, earlier, memory)
    return outcome(lambda: present(doc, case, memory))


def dpop(doc: Case, case: Case, send: Sequence[Case] = ()) -> bool:
    return dpop_outcome(doc, case, send) is None


def passkey_outcome(doc: Case, case: Case) -> AgentAuthError | None:
    # Late, so that the other vectors run without Django.
    from approvals.passkeys import verify_assertion

    return outcome(
        lambda: verify_assertion(
            credential=case["credential"],
            expected_challenge=b64u_decode(doc["challenge_b64u"]),
            rp_id=doc["rp_id"],
            origin=doc["origin"],
            public_key=b64u_decode(case["stored"]["public_key_cose_b64u"]),
            sign_count=case["stored"]["sign_count"],
            expected_credential_id=b64u_decode(doc["credential_id_b64u"]),
            expected_user_handle=b64u_decode(doc["user_handle_b64u"]),
            expected_backup_eligible=None,
        )
    )


def passkey(doc: Case, case: Case) -> bool:
    return passkey_outcome(doc, case) is None
