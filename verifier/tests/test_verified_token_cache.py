"""A cached token skips only its signature check; all that can change is checked each time."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import time_machine
from django.utils import timezone

from agentauth.protocol.capability import Capability
from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.identifiers import uuid7_text
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey
from agentauth.protocol.token import TokenClaims, build_claims, sign_token, verify_token
from kms.models import Key
from kms.services import disable_key
from registry.models import Token
from registry.services.service_providers import create_service_provider
from registry.services.tokens import revoke_token
from verifier.services.verified_token_cache import ProvedTokens
from verifier.tests.scene import LOOK, SYSTEM, Scene

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://registry.example", "https://api.sp.example"
SIGNER, OTHER = LocalSigner(PrivateKey.generate(), "k1"), LocalSigner(PrivateKey.generate(), "k2")
KEYS = {"k1": SIGNER.public}


def signed(number: int = 1, **change: Any) -> str:
    name = uuid7_text(NOW, bytes(8) + number.to_bytes(2))
    claims = build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        subject="subject",
        agent_id=name,
        jti=name,
        issued_at=NOW,
        expires_at=NOW + 900,
        jkt=OTHER.public.thumbprint,
        grant_id=name,
        grant_version=1,
        capabilities=(Capability.read("calendar"),),
        has_envelope=True,
    )
    return sign_token(claims | change, SIGNER)


def settings(**change: Any) -> Any:
    return {
        "keys": KEYS,
        "expected_issuer": ISSUER,
        "expected_audience": AUDIENCE,
        "now": NOW,
        **change,
    }


@pytest.fixture
def signatures(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The messages whose signatures are checked from now on."""
    checked: list[bytes] = []
    check = PublicKey.verify

    def counted(self: PublicKey, message: bytes, signature: bytes, *, alg: str) -> None:
        checked.append(message)
        check(self, message, signature, alg=alg)

    monkeypatch.setattr(PublicKey, "verify", counted)
    return checked


def test_a_token_seen_again_is_the_same_without_its_signature(signatures: list[bytes]) -> None:
    tokens, token = ProvedTokens(), signed()
    first = tokens.verify(token, **settings())
    again = tokens.verify(token, **settings(now=NOW + 899))
    assert first == again == verify_token(token, **settings())[1]
    # Once by the cache, and once by `verify_token` itself.
    assert len(signatures) == 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"keys": {}}, "unknown"),
        ({"keys": {"k2": SIGNER.public}}, "unknown"),
        ({"keys": {"k1": OTHER.public}}, "unknown"),
        ({"expected_audience": "https://api.other.example"}, "unknown"),
        ({"expected_issuer": "https://other.example"}, "unknown"),
        ({"now": NOW + 900}, "expired"),
        ({"now": NOW + 10**6}, "expired"),
        ({"now": NOW - 11}, "not_yet_valid"),
    ],
    ids=["gone", "renamed", "replaced", "audience", "issuer", "end", "long ago", "clock back"],
)
def test_what_no_longer_holds_is_refused_as_if_the_token_were_new(change: Any, reason: str) -> None:
    tokens, token = ProvedTokens(), signed()
    tokens.verify(token, **settings())
    with pytest.raises(InvalidTokenError) as cold:
        verify_token(token, **settings(**change))
    with pytest.raises(InvalidTokenError) as warm:
        tokens.verify(token, **settings(**change))
    assert (warm.value.reason, warm.value.description) == (
        cold.value.reason,
        cold.value.description,
    )
    assert warm.value.reason == reason
    # The refusal does not evict it: a correct request is still answered.
    assert tokens.verify(token, **settings()).jti


def test_a_clock_that_went_back_is_judged_by_what_it_says_now(signatures: list[bytes]) -> None:
    tokens, token = ProvedTokens(), signed()
    tokens.verify(token, **settings(now=NOW + 100))
    tokens.verify(token, **settings(now=NOW + 99))
    assert len(signatures) == 2
    with pytest.raises(InvalidTokenError) as caught:
        tokens.verify(token, **settings(now=NOW - 11))
    assert caught.value.reason == "not_yet_valid"
    tokens.verify(token, **settings(now=NOW + 100))
    assert len(signatures) == 3


def test_a_refusal_is_not_kept() -> None:
    tokens, token = ProvedTokens(), signed()
    head, _, _ = token.rpartition(".")
    for wrong in (f"{head}.{'A' * 86}", token + "A", "", signed(aud="https://api.other.example")):
        for _ in range(2):
            with pytest.raises(InvalidTokenError):
                tokens.verify(wrong, **settings())
    assert len(tokens) == 0


def test_another_spelling_is_another_token() -> None:
    tokens, token = ProvedTokens(), signed()
    tokens.verify(token, **settings())
    for wrong in (token + "=", token + " ", token.replace(".", "..", 1), token[:-1]):
        with pytest.raises(InvalidTokenError):
            tokens.verify(wrong, **settings())


def test_at_most_so_many_are_kept_and_the_one_not_seen_for_longest_goes(
    signatures: list[bytes],
) -> None:
    first, second, third = (signed(number) for number in (1, 2, 3))
    tokens = ProvedTokens(bound=len(first) * 2)
    for token in (first, second, first, third):
        tokens.verify(token, **settings())
        assert len(tokens) <= 2
    signatures.clear()
    tokens.verify(first, **settings())
    tokens.verify(third, **settings())
    assert signatures == []
    tokens.verify(second, **settings())
    assert len(signatures) == 1


def test_what_has_ended_is_kept_no_longer_than_it_takes_as_many_to_come() -> None:
    tokens = ProvedTokens()
    for number in range(6):
        tokens.verify(signed(number, exp=NOW + 100), **settings())
    lasting = signed(6)
    tokens.verify(lasting, **settings())
    sizes = []
    for number in range(7, 11):
        tokens.verify(signed(number), **settings(now=NOW + 100))
        sizes.append(len(tokens))
    # For each new entry two expired ones are evicted, while there are any.
    assert sizes == [6, 5, 4, 5]


def test_token_proved_again_counts_once() -> None:
    first, second = signed(1), signed(2)
    tokens = ProvedTokens(bound=len(first) * 2)
    tokens.verify(second, **settings())
    for now in (NOW + 3, NOW + 2, NOW + 1):
        tokens.verify(first, **settings(now=now))
    assert len(tokens) == 2


def test_one_longer_than_all_that_may_be_kept_is_not() -> None:
    tokens = ProvedTokens(bound=100)
    assert tokens.verify(signed(), **settings()) == verify_token(signed(), **settings())[1]
    assert len(tokens) == 0


def test_the_key_that_proved_it_is_the_one_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    # Another thread may change the map of keys during the check.
    keys, tokens, token = dict(KEYS), ProvedTokens(), signed()
    check = PublicKey.verify

    def replaced_meanwhile(self: PublicKey, message: bytes, signature: bytes, *, alg: str) -> None:
        check(self, message, signature, alg=alg)
        keys["k1"] = OTHER.public

    monkeypatch.setattr(PublicKey, "verify", replaced_meanwhile)
    tokens.verify(token, **settings(keys=keys))
    with pytest.raises(InvalidTokenError):
        tokens.verify(token, **settings(keys=keys))


def test_many_threads_share_it() -> None:
    texts = [signed(number) for number in range(6)]
    tokens = ProvedTokens(bound=len(texts[0]) * 3)
    expected = [verify_token(text, **settings())[1] for text in texts]

    def ask(turn: int) -> TokenClaims:
        return tokens.verify(texts[turn % 6], **settings())

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(600)))
    assert answers == [expected[turn % 6] for turn in range(600)]
    assert len(tokens) == 3


def verdict(answer: dict[str, Any]) -> str:
    return "valid" if answer["valid"] else f"{answer['error']}/{answer.get('reason')}"


def disabled(place: Scene) -> None:
    disable_key(
        kid=Key.objects.get(purpose="token").kid, actor=SYSTEM, now=timezone.now(), even_last=True
    )


def revoked(place: Scene) -> None:
    revoke_token(jti=Token.objects.latest("issued_at").jti, actor=SYSTEM, now=timezone.now())


@pytest.mark.parametrize(
    ("act", "expected"),
    [(disabled, "invalid_token/unknown"), (revoked, "invalid_token/revoked")],
)
def test_between_two_calls_with_one_token(
    place: Scene, act: Callable[[Scene], None], expected: str
) -> None:
    token = place.token()
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    act(place)
    assert verdict(place.ask(LOOK, token=token)) == expected


def test_VB_2_other_providers_token_is_unknown_even_if_proved_before(place: Scene) -> None:
    token = place.token()
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    other, secret = create_service_provider(
        name="Other",
        audience="https://other.example",
        allowed=["read:calendar"],
        actor=SYSTEM,
        now=timezone.now(),
    )
    elsewhere = replace(place, provider=other, secret=secret)
    assert verdict(elsewhere.ask(LOOK, token=token)) == "invalid_token/unknown"


def test_a_token_ends_although_it_was_proved(place: Scene) -> None:
    token = place.token()
    assert verdict(place.ask(LOOK, token=token)) == "valid"
    with time_machine.travel(timezone.now() + timedelta(seconds=901)):
        assert verdict(place.ask(LOOK, token=token)) == "invalid_token/expired"
