"""Nothing that is kept between two calls changes an answer: every vector, asked cold and then again, is answered alike."""

from collections.abc import Callable
from typing import Any

import pytest

from agentauth.protocol import dpop, urls
from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.encoding import b64u_encode, canonical_json
from agentauth.protocol.errors import AgentAuthError
from verifier.services.proved_tokens import ProvedTokens

from . import adapter
from .shared import cases, load

pytestmark = pytest.mark.vectors


def forget() -> None:
    dpop._kept_header.cache_clear()
    urls.split_url.cache_clear()


def said(act: Callable[[], object]) -> tuple[object, ...]:
    """What comes back, or the refusal in all its parts."""
    try:
        return "accepted", act()
    except AgentAuthError as refusal:
        return type(refusal), refusal.reason, refusal.description


@pytest.mark.parametrize("case", cases("own_token_cases"))
def test_a_token_is_judged_alike_cold_and_warm(case: Any) -> None:
    doc = load("own_token_cases")
    keys, tokens = adapter.issuer_keys(doc["issuer_jwks"]), ProvedTokens()
    settings = {"keys": keys, "expected_issuer": doc["issuer"], "expected_audience": doc["audience"]}

    def proved(compact: str, now: int) -> object:
        return tokens.verify(compact, **settings, now=now)

    for each in doc["cases"]:
        # Everything that may be kept is, at the time it is good.
        said(lambda each=each: proved(each["token"], each.get("now", doc.get("now"))))  # type: ignore[misc]
    assert len(tokens) > 0
    now = case.get("now", doc.get("now"))
    # Before, at and after the time of the case: a hit must give what that time gives.
    for moment in (now, now, now - 3_600, now + 3_600, now):
        assert said(lambda moment=moment: proved(case["token"], moment)) == said(  # type: ignore[misc]
            lambda moment=moment: adapter.read_token(doc, case["token"], moment)  # type: ignore[misc]
        )


@pytest.mark.parametrize("case", cases("own_dpop_cases"))
def test_a_proof_is_judged_alike_cold_and_warm(case: Any) -> None:
    doc = load("own_dpop_cases")

    def judged() -> tuple[object, ...]:
        return said(lambda: adapter.present(doc, case, adapter.ReplayMemory()))

    forget()
    cold = judged()
    for other in doc["cases"]:
        said(lambda other=other: adapter.present(doc, other, adapter.ReplayMemory()))  # type: ignore[misc]
    assert dpop._kept_header.cache_info().currsize > 0
    assert judged() == cold == judged()


def test_a_refused_header_is_not_kept() -> None:
    forget()
    doc = load("own_dpop_cases")
    for case in doc["cases"]:
        if len(case["dpop"]) == 1 and case["dpop"][0].count(".") == 2:
            segment = case["dpop"][0].split(".")[0]
            before = dpop._kept_header.cache_info().currsize
            read = said(lambda segment=segment: dpop._header(segment))  # type: ignore[misc]
            said(lambda segment=segment: dpop._kept_header(segment))  # type: ignore[misc]
            grew = dpop._kept_header.cache_info().currsize - before
            assert read[0] == "accepted" or not grew, case["id"]


def test_what_is_kept_of_a_header_cannot_be_changed() -> None:
    example = load("rfc_examples")["rfc9449"]["proofs"][0]["jwt"]
    key, header = dpop._kept_header(example.split(".")[0])
    for change in ("__setitem__", "update", "pop", "setdefault", "clear"):
        assert not hasattr(header, change)
    assert all(isinstance(value, str) for value in header.values())
    lists = b64u_encode(canonical_json({"alg": "EdDSA", "typ": ["x"], "jwk": key.jwk}))
    assert dpop._header(lists)[1] == {"alg": "EdDSA", "typ": None}
    with pytest.raises(AttributeError):
        key.alg = "none"  # type: ignore[misc, assignment]


def test_a_long_header_is_read_each_time() -> None:
    from agentauth.protocol.jose import sign_compact
    from tests.vectors.generate import AGENT, NOW, URL

    claims = {"jti": "1", "htm": "GET", "htu": URL, "iat": NOW}
    forget()
    for length, kept in ((400, 0), (1, 1)):
        header = {"jwk": AGENT.public.jwk, "note": "x" * length}
        compact = sign_compact(claims, AGENT, typ=dpop.TYP, header=header)
        verify_proof(compact, expected_method="GET", expected_url=URL, access_token=None, body=None, now=NOW)
        assert dpop._kept_header.cache_info().currsize == kept
