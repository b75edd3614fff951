"""The keys of verified tokens that are kept by the header of a proof, so that an agent's next proof
is read faster.
"""

import pytest

from agentauth.protocol import dpop
from agentauth.protocol.dpop import check_binding
from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.tests.test_dpop import CLAIMS, HEADER, SIGNER, forge, reason_of, verify


def naming(signer: LocalSigner, *, signed_by: LocalSigner | None = None) -> str:
    return forge(CLAIMS, {**HEADER, "jwk": signer.public.jwk}, signed_by or signer)


def bind(signer: LocalSigner, *, to: LocalSigner | None = None) -> None:
    check_binding(verify(naming(signer)), expected_jkt=(to or signer).kid)


def strangers(count: int) -> list[LocalSigner]:
    return [LocalSigner(PrivateKey.generate()) for _ in range(count)]


@pytest.fixture
def _nothing_kept() -> None:
    dpop._BOUND_KEYS.clear()
    dpop._BOUND_HEADERS.clear()


@pytest.mark.usefixtures("_nothing_kept")
def test_SA_10_a_key_is_kept_only_after_signature_and_binding_held() -> None:
    [signer] = strangers(1)
    assert reason_of(lambda: verify(naming(signer, signed_by=SIGNER))) == "signature"
    with pytest.raises(InvalidTokenError):
        bind(signer, to=SIGNER)
    assert not dpop._BOUND_KEYS
    bind(signer)
    assert list(dpop._BOUND_KEYS.values()) == [signer.public]


@pytest.mark.usefixtures("_nothing_kept")
def test_SA_10_a_kept_key_proves_nothing_by_itself() -> None:
    [signer] = strangers(1)
    bind(signer)
    assert reason_of(lambda: verify(naming(signer, signed_by=SIGNER))) == "signature"


@pytest.mark.usefixtures("_nothing_kept")
def test_SA_10_kept_keys_are_bounded_and_survive_a_flood_of_strangers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dpop, "_KEPT_HEADERS", 4)
    agents = strangers(4)
    for signer in agents:
        bind(signer)
    for signer in strangers(8):
        with pytest.raises(InvalidTokenError):
            bind(signer, to=SIGNER)
    assert list(dpop._BOUND_KEYS.values()) == [signer.public for signer in agents]
    [later] = strangers(1)
    bind(later)
    assert list(dpop._BOUND_KEYS.values()) == [signer.public for signer in (*agents[1:], later)]


@pytest.mark.usefixtures("_nothing_kept")
def test_SA_10_header_variants_of_one_agent_evict_no_other_agents_key(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dpop, "_KEPT_HEADERS", 4)
    agents = strangers(4)
    for signer in agents:
        bind(signer)
    for number in range(8):
        jwk = {**agents[0].public.jwk, "number": number}
        proof = verify(forge(CLAIMS, {**HEADER, "jwk": jwk}, agents[0]))
        check_binding(proof, expected_jkt=agents[0].kid)
    assert list(dpop._BOUND_KEYS.values()) == [signer.public for signer in (*agents[1:], agents[0])]


@pytest.mark.usefixtures("_nothing_kept")
def test_SA_10_a_header_above_512_letters_is_not_kept() -> None:
    [signer] = strangers(1)
    jwk = {**signer.public.jwk, "more": "x" * 512}
    check_binding(verify(forge(CLAIMS, {**HEADER, "jwk": jwk}, signer)), expected_jkt=signer.kid)
    assert not dpop._BOUND_KEYS
