"""The change of an agent's key: who must sign it, what it must say, and for whom it is valid."""

from typing import Any

import pytest

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import EncodingError, InvalidRequestError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_change import (
    KEY_CHANGE_TYP,
    WINDOW_SECONDS,
    VerifiedKeyChange,
    sign_key_change,
    verify_key_change,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, PrivateMemberError
from tests.forging import changed_signature

ISSUER = "https://registry.example"
AGENT_ID = "01900000-0000-7000-8000-000000000001"
NOW = 1_795_000_000
OLD = LocalSigner(PrivateKey.generate())
NEW = LocalSigner(PrivateKey.generate())
CLAIMS: dict[str, Any] = {
    "aud": ISSUER,
    "iat": NOW,
    "jti": "0123456789abcdef",
    "agent_id": AGENT_ID,
    "old_jkt": OLD.public.thumbprint,
}


def signed(
    *,
    signer: LocalSigner = NEW,
    jwk: Any = None,
    typ: str = KEY_CHANGE_TYP,
    without: str = "",
    **changes: Any,
) -> str:
    claims = {name: value for name, value in (CLAIMS | changes).items() if name != without}
    header = {"jwk": signer.public.jwk if jwk is None else jwk}
    return sign_compact(claims, signer, typ=typ, header=header)


def verify(compact: str, *, now: int = NOW, agent_id: str = AGENT_ID) -> VerifiedKeyChange:
    return verify_key_change(
        compact,
        expected_audience=ISSUER,
        expected_agent_id=agent_id,
        expected_old_jkt=OLD.public.thumbprint,
        now=now,
    )


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_signed_change_is_read_back(alg: Any) -> None:
    signer = LocalSigner(PrivateKey.generate(alg))
    compact = sign_key_change(
        signer,
        audience=ISSUER,
        issued_at=NOW,
        jti="j",
        agent_id=AGENT_ID,
        old_jkt=OLD.public.thumbprint,
    )
    change = verify(compact)
    assert (change.key, change.jkt) == (signer.public, signer.public.thumbprint)
    assert (change.agent_id, change.old_jkt) == (AGENT_ID, OLD.public.thumbprint)


@pytest.mark.parametrize("seconds", [-WINDOW_SECONDS, WINDOW_SECONDS])
def test_a_minute_either_way_is_now(seconds: int) -> None:
    assert verify(signed(iat=NOW + seconds)).key == NEW.public


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"iat": NOW - WINDOW_SECONDS - 1}, "iat"),
        ({"iat": NOW + WINDOW_SECONDS + 1}, "iat"),
        ({"iat": str(NOW)}, "iat"),
        ({"iat": True}, "iat"),
        ({"iat": -1}, "iat"),
        ({"aud": "https://other.example"}, "aud"),
        ({"aud": [ISSUER]}, "aud"),
        ({"aud": ISSUER + "/"}, "aud"),
        ({"jti": ""}, "jti"),
        ({"jti": "j" * 257}, "jti"),
        ({"jti": 1}, "jti"),
        ({"agent_id": "01900000-0000-7000-8000-000000000002"}, "agent_id"),
        ({"agent_id": AGENT_ID.upper().replace("0", "O")}, "agent_id"),
        ({"agent_id": None}, "agent_id"),
        ({"old_jkt": NEW.public.thumbprint}, "old_jkt"),
        ({"old_jkt": ""}, "old_jkt"),
        ({"exp": NOW + 60}, "exp"),
        ({"capabilities": []}, "capabilities"),
    ],
)
def test_a_wrong_claim_is_refused_by_name(change: dict[str, Any], where: str) -> None:
    with pytest.raises(InvalidRequestError, match=where):
        verify(signed(**change))


@pytest.mark.parametrize("name", list(CLAIMS))
def test_no_claim_may_be_missing(name: str) -> None:
    with pytest.raises(InvalidRequestError, match=name):
        verify(signed(without=name))


@pytest.mark.parametrize(
    "typ", ["agent-manifest+jwt", "dpop+jwt", "at+jwt", "JWT", "Agent-Key+jwt", ""]
)
def test_another_kind_of_signed_object_is_refused(typ: str) -> None:
    with pytest.raises(InvalidRequestError):
        verify(signed(typ=typ))


def test_a_proof_of_the_next_key_is_not_its_statement() -> None:
    proof = make_proof(NEW, method="POST", url=f"{ISSUER}/v1/agents/me/key", iat=NOW, jti="j")
    with pytest.raises(InvalidRequestError):
        verify(proof)


def test_only_the_holder_of_the_next_key_can_name_it() -> None:
    """The current key signs for a foreign key: a thief could bind the agent to a key that it does
    not have.
    """
    with pytest.raises(InvalidRequestError):
        verify(signed(signer=OLD, jwk=NEW.public.jwk))


def test_current_key_is_refused_as_the_next_key() -> None:
    with pytest.raises(InvalidRequestError, match="must differ"):
        verify(signed(signer=OLD))
    with pytest.raises(InvalidRequestError, match="must differ"):
        sign_key_change(
            OLD,
            audience=ISSUER,
            issued_at=NOW,
            jti="j",
            agent_id=AGENT_ID,
            old_jkt=OLD.public.thumbprint,
        )


def test_a_changed_byte_breaks_it() -> None:
    head, payload, signature = signed().split(".")
    other = signed(jti="other").split(".")[1]
    with pytest.raises(InvalidRequestError):
        verify(f"{head}.{other}.{signature}")
    with pytest.raises(InvalidRequestError):
        verify(changed_signature(f"{head}.{payload}.{signature}"))


@pytest.mark.parametrize("jwk", [None, {}, [], "x", {"kty": "OKP"}, {"kty": "oct", "k": "AA"}])
def test_a_header_without_a_key_of_ours_is_refused(jwk: Any) -> None:
    compact = sign_compact(CLAIMS, NEW, typ=KEY_CHANGE_TYP, header={"jwk": jwk})
    with pytest.raises((InvalidRequestError, PrivateMemberError)):
        verify(compact)


@pytest.mark.parametrize("alg", ["none", "HS256", "RS256", "ES256"])
def test_another_algorithm_than_the_keys_is_refused(alg: str) -> None:
    head = b64u_encode(
        f'{{"alg":"{alg}","jwk":{{"crv":"Ed25519","kty":"OKP","x":"{NEW.public.jwk["x"]}"}},"typ":"{KEY_CHANGE_TYP}"}}'.encode()
    )
    _, payload, _ = signed().split(".")
    message = f"{head}.{payload}"
    with pytest.raises(InvalidRequestError):
        verify(f"{message}.{b64u_encode(NEW.sign(message.encode()))}")


def test_private_key_in_key_change_header_is_reported_for_barring() -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    signer = LocalSigner(private := PrivateKey.generate())
    seed = load_pem_private_key(private.to_pem(), None).private_bytes_raw()  # type: ignore[union-attr]
    with pytest.raises(PrivateMemberError) as caught:
        verify(signed(signer=signer, jwk=signer.public.jwk | {"d": b64u_encode(seed)}))
    assert caught.value.derives == signer.public


def test_key_change_must_be_a_compact_jws() -> None:
    for text in (
        "",
        "x",
        "a.b",
        "a.b.c.d",
        signed() + ".",
        "ä.b.c",
        signed().replace(".", "..", 1),
    ):
        with pytest.raises((InvalidRequestError, EncodingError)):
            verify(text)
