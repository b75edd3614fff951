"""Caches never change an answer: every vector gets the same answer cold and again."""

from collections.abc import Callable
from typing import Any

import pytest

from agentauth.protocol import dpop, url_normalization
from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.errors import AgentAuthError
from verifier.services.verified_token_cache import ProvedTokens

from . import adapter
from .shared import cases, load

pytestmark = pytest.mark.vectors


def forget() -> None:
    dpop._BOUND_KEYS.clear()
    dpop._BOUND_HEADERS.clear()
    url_normalization.split_url.cache_clear()


def said(act: Callable[[], object]) -> tuple[object, ...]:
    """The result, or the refusal with all its parts."""
    try:
        return "accepted", act()
    except AgentAuthError as refusal:
        return type(refusal), refusal.reason, refusal.description


@pytest.mark.parametrize("case", cases("own_token_cases"))
def test_a_token_is_judged_alike_cold_and_warm(case: Any) -> None:
    doc = load("own_token_cases")
    keys, tokens = adapter.issuer_keys(doc["issuer_jwks"]), ProvedTokens()
    settings = {
        "keys": keys,
        "expected_issuer": doc["issuer"],
        "expected_audience": doc["audience"],
    }

    def proved(compact: str, now: int) -> object:
        return tokens.verify(compact, **settings, now=now)

    for each in doc["cases"]:
        # Fill every cache, at the time the case is valid.
        said(lambda each=each: proved(each["token"], each.get("now", doc.get("now"))))  # type: ignore[misc]
    assert len(tokens) > 0
    now = case.get("now", doc.get("now"))
    # Before, at and after the time of the case: a cache hit must give that time's answer.
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
    assert dpop._BOUND_KEYS
    assert judged() == cold == judged()


def test_SA_10_of_a_refused_proof_nothing_is_kept() -> None:
    doc, kept = load("own_dpop_cases"), 0
    for case in doc["cases"]:
        forget()
        outcome = said(lambda case=case: adapter.present(doc, case, adapter.ReplayMemory()))  # type: ignore[misc]
        assert len(dpop._BOUND_KEYS) == (outcome[0] == "accepted"), case["id"]
        kept += len(dpop._BOUND_KEYS)
    assert kept


def test_a_long_header_is_read_each_time() -> None:
    from agentauth.protocol.jose import sign_compact
    from tests.vectors.generate import AGENT, NOW, URL

    claims = {"jti": "1", "htm": "GET", "htu": URL, "iat": NOW}
    forget()
    for length, kept in ((400, 0), (1, 1)):
        header = {"jwk": AGENT.public.jwk, "note": "x" * length}
        compact = sign_compact(claims, AGENT, typ=dpop.TYP, header=header)
        proof = verify_proof(
            compact, expected_method="GET", expected_url=URL, access_token=None, body=None, now=NOW
        )
        dpop.check_binding(proof, expected_jkt=AGENT.kid)
        assert len(dpop._BOUND_KEYS) == kept
