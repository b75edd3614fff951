"""Introductions: each key is introduced by the one before it, for one registry and one purpose."""

import itertools
from typing import Any

import pytest

from agentauth.protocol.errors import InvalidRequestError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_introduction import (
    INTRODUCTION_TYP,
    introduced_keys,
    sign_introduction,
    verify_introduction,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey

ISSUER = "https://registry.example"
KEYS = [LocalSigner(PrivateKey.generate(alg)) for alg in ("EdDSA", "ES256", "EdDSA", "EdDSA")]


def introduction(present: LocalSigner, following: LocalSigner, **changed: Any) -> str:
    values: dict[str, Any] = {"issuer": ISSUER, "purpose": "token", "issued_at": 0} | changed
    return sign_introduction(present, following.public, **values)


def verified(compact: str, present: LocalSigner) -> PublicKey:
    return verify_introduction(
        compact, present.public, expected_issuer=ISSUER, expected_purpose="token"
    )


def test_a_key_introduces_the_next_of_either_algorithm() -> None:
    for present, following in itertools.pairwise(KEYS):
        assert verified(introduction(present, following), present) == following.public


@pytest.mark.parametrize(
    "changed", [{"issuer": "https://other.example"}, {"purpose": "audit"}, {"issued_at": -1}]
)
def test_what_is_of_another_registry_or_purpose_or_time_is_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        verified(introduction(KEYS[0], KEYS[1], **changed), KEYS[0])


@pytest.mark.parametrize(
    "claims",
    [
        {"more": 1},
        {"jwk": None},
        {"jwk": KEYS[1].public.jwk | {"d": "A" * 43}},
        {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}},
        {"iat": True},
    ],
)
def test_claims_are_exactly_those_known(claims: dict[str, Any]) -> None:
    whole = {"iss": ISSUER, "purpose": "token", "iat": 1, "jwk": KEYS[1].public.jwk} | claims
    with pytest.raises(InvalidRequestError):
        verified(
            sign_compact(whole, KEYS[0], typ=INTRODUCTION_TYP, header={"kid": KEYS[0].kid}), KEYS[0]
        )
    for name in ("iss", "purpose", "iat", "jwk"):
        less = {key: value for key, value in whole.items() if key not in {name, "more"}}
        with pytest.raises(InvalidRequestError):
            verified(sign_compact(less, KEYS[0], typ=INTRODUCTION_TYP), KEYS[0])


def test_token_or_unknown_key_is_not_an_introduction() -> None:
    claims = {"iss": ISSUER, "purpose": "token", "iat": 1, "jwk": KEYS[1].public.jwk}
    for compact in (
        sign_compact(claims, KEYS[0], typ="at+jwt", header={"kid": KEYS[0].kid}),
        sign_compact(claims, KEYS[2], typ=INTRODUCTION_TYP, header={"kid": KEYS[0].kid}),
        introduction(KEYS[0], KEYS[1])[:-8] + "AAAAAAAA",
        "",
        "a.b.c",
    ):
        with pytest.raises(InvalidRequestError):
            verified(compact, KEYS[0])


def reached(pinned: LocalSigner, introductions: list[str]) -> list[str]:
    keys = introduced_keys(
        pinned.public, introductions, expected_issuer=ISSUER, expected_purpose="token"
    )
    return [key.thumbprint for key in keys]


def test_from_any_key_one_walks_to_all_that_came_after() -> None:
    line = [introduction(present, following) for present, following in itertools.pairwise(KEYS)]
    kids = [key.kid for key in KEYS]
    for start, pinned in enumerate(KEYS):
        assert reached(pinned, line) == kids[start:]


def test_a_missing_or_forged_step_ends_the_walk() -> None:
    stranger = LocalSigner(PrivateKey.generate("EdDSA"))
    good = introduction(KEYS[0], KEYS[1])
    forged = sign_introduction(
        LocalSigner(PrivateKey.generate("EdDSA"), KEYS[1].kid),
        stranger.public,
        issuer=ISSUER,
        purpose="token",
        issued_at=1,
    )
    assert reached(KEYS[0], [good, forged, "nonsense", introduction(KEYS[2], KEYS[3])]) == [
        KEYS[0].kid,
        KEYS[1].kid,
    ]


def test_more_than_a_lifetime_of_introductions_is_refused() -> None:
    assert reached(KEYS[0], ["x"] * 1_000) == [KEYS[0].kid]
    with pytest.raises(InvalidRequestError):
        reached(KEYS[0], ["x"] * 1_001)
