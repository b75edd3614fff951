"""Certificates: what one key of the registry lets a key of one process sign, read strictly; and the
tokens it may prove.
"""

from typing import Any

import pytest

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidRequestError, InvalidTokenError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.key_introduction import INTRODUCTION_TYP
from agentauth.protocol.key_set import read_key_set
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.process_key_certificate import (
    CERTIFICATE_TYP,
    MAX_CERTIFICATE_SECONDS,
    Certificate,
    sign_certificate,
    verify_certificate,
)
from agentauth.protocol.tests.test_token import AUDIENCE, CAPABILITIES, ISSUER, JKT, NOW
from agentauth.protocol.token import TYP, TokenKey, build_claims, sign_token, verify_token

ROOT, P256, OTHER = (LocalSigner(PrivateKey.generate(alg)) for alg in ("EdDSA", "ES256", "EdDSA"))
HELD, STRANGE = (LocalSigner(PrivateKey.generate()) for _ in range(2))
SERIAL = "01940000-0000-7000-8000-00000000000a"
CLAIMS: dict[str, Any] = {
    "iss": ISSUER,
    "sub": HELD.public.thumbprint,
    "cnf": {"jwk": HELD.public.jwk},
    "purpose": "token",
    "nbf": NOW,
    "exp": NOW + 3600,
    "max_token_seconds": 600,
    "instance": "web-1:42",
    "jti": SERIAL,
}
HEADER = {"kid": ROOT.kid}


def certificate(by: LocalSigner = ROOT, of: LocalSigner = HELD, **changed: Any) -> str:
    values: dict[str, Any] = {
        "issuer": ISSUER,
        "serial": SERIAL,
        "instance": "web-1:42",
        "not_before": NOW,
        "not_after": NOW + 3600,
        "max_token_seconds": 600,
    }
    return sign_certificate(by, of.public, **(values | changed))


def written(
    changed: dict[str, Any] | None = None, *, typ: str = CERTIFICATE_TYP, **header: Any
) -> str:
    claims = {name: value for name, value in (CLAIMS | (changed or {})).items() if value is not ...}
    return sign_compact(claims, ROOT, typ=typ, header=HEADER | header)


def verified(compact: str, by: LocalSigner = ROOT) -> Certificate:
    return verify_certificate(compact, keys={by.kid: by.public}, expected_issuer=ISSUER)


def published(compact: object, of: LocalSigner = HELD, **more: Any) -> dict[str, Any]:
    return {
        **of.public.jwk,
        "kid": of.kid,
        "use": "sig",
        "alg": of.alg,
        "certificate": compact,
        **more,
    }


def key_set(*certified: dict[str, Any]) -> dict[str, TokenKey]:
    own = [
        {**each.public.jwk, "kid": each.kid, "use": "sig", "alg": each.alg} for each in (ROOT, P256)
    ]
    return read_key_set({"keys": [*certified, *own]}, expected_issuer=ISSUER)


def token(by: LocalSigner = HELD, *, issued_at: int = NOW + 200, life: int = 600) -> str:
    claims = build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        subject="user:1",
        agent_id="01940000-0000-7000-8000-000000000001",
        jti="t-1",
        issued_at=issued_at,
        expires_at=issued_at + life,
        jkt=JKT,
        grant_id="01940000-0000-7000-8000-000000000002",
        grant_version=1,
        capabilities=CAPABILITIES,
        has_envelope=False,
    )
    return sign_token(claims, by)


def reason(compact: str, keys: dict[str, TokenKey], *, now: int = NOW + 200) -> str | None:
    """Why the token is refused; None if it is valid."""
    try:
        verify_token(
            compact, keys=keys, expected_issuer=ISSUER, expected_audience=AUDIENCE, now=now
        )
    except InvalidTokenError as error:
        return error.reason
    return None


@pytest.mark.parametrize("by", [ROOT, P256], ids=["Ed25519", "P-256"])
def test_a_certificate_says_what_was_certified(by: LocalSigner) -> None:
    found = verified(certificate(by), by)
    assert (found.serial, found.instance, found.key.key) == (SERIAL, "web-1:42", HELD.public)
    assert (found.key.not_before, found.key.not_after, found.key.max_token_seconds) == (
        NOW,
        NOW + 3600,
        600,
    )


def test_the_certificate_is_exactly_its_documented_bytes() -> None:
    assert certificate() == written()


def test_a_certificate_may_be_as_small_as_its_bounds() -> None:
    found = verified(certificate(not_before=0, not_after=1, max_token_seconds=1)).key
    assert (found.not_before, found.not_after, found.max_token_seconds) == (0, 1, 1)


def test_a_key_set_has_up_to_10_000_keys_and_may_be_empty() -> None:
    # Keys of unknown types are left out.
    for count in (0, 10_000):
        assert read_key_set({"keys": [{}] * count}, expected_issuer=ISSUER) == {}
    with pytest.raises(InvalidRequestError, match="keys"):
        read_key_set({"keys": [{}] * 10_001}, expected_issuer=ISSUER)


@pytest.mark.parametrize("name", sorted(CLAIMS))
def test_every_claim_must_be_there(name: str) -> None:
    with pytest.raises(InvalidRequestError):
        verified(written({name: ...}))


@pytest.mark.parametrize(
    "changed",
    [
        {"more": 1},
        {"iss": "https://other.example"},
        {"iss": ISSUER + "/"},
        {"sub": STRANGE.kid},
        {"purpose": "receipt"},
        {"purpose": None},
        {"nbf": -1},
        {"nbf": True},
        {"nbf": str(NOW)},
        {"exp": NOW},
        {"exp": NOW + MAX_CERTIFICATE_SECONDS + 1},
        {"max_token_seconds": 0},
        {"max_token_seconds": 901},
        {"max_token_seconds": True},
        {"jti": "1"},
        {"jti": SERIAL.upper()},
        {"jti": None},
        {"instance": ""},
        {"instance": "web 1"},
        {"instance": "a" * 129},
        {"instance": 1},
        {"cnf": {"jwk": HELD.public.jwk, "jkt": HELD.kid}},
        {"cnf": {"jkt": HELD.kid}},
        {"cnf": {"jwk": HELD.public.jwk | {"d": "A" * 43}}},
        {"cnf": {"jwk": HELD.public.jwk | {"alg": "EdDSA"}}},
        {"cnf": {"jwk": {"kty": "OKP", "crv": "Ed25519", "x": "A" * 43}}},
        {"cnf": {"jwk": P256.public.jwk}, "sub": P256.kid},
        {"cnf": {"jwk": ROOT.public.jwk}, "sub": ROOT.kid},
    ],
)
def test_KM_10_a_certificate_says_nothing_that_is_not_allowed(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        verified(written(changed))


def test_the_longest_life_is_a_day() -> None:
    assert verified(written({"exp": NOW + MAX_CERTIFICATE_SECONDS}))


@pytest.mark.parametrize(
    "changed",
    [
        {"issuer": "https://other.example"},
        {"not_after": NOW + MAX_CERTIFICATE_SECONDS + 1},
        {"max_token_seconds": 901},
        {"instance": "a/b"},
        {"of": P256},
        {"of": ROOT},
    ],
)
def test_what_must_not_be_certified_is_never_signed(changed: dict[str, Any]) -> None:
    if "issuer" in changed:
        # Only the reader knows which registry it expects.
        with pytest.raises(InvalidRequestError):
            verified(certificate(**changed))
        return
    with pytest.raises(InvalidRequestError):
        certificate(**changed)


@pytest.mark.parametrize("typ", [TYP, INTRODUCTION_TYP, "JWT", CERTIFICATE_TYP.upper()])
def test_KM_10_no_other_kind_is_taken_for_a_certificate(typ: str) -> None:
    with pytest.raises(InvalidRequestError):
        verified(written(typ=typ))


def test_KM_10_no_certificate_is_taken_for_a_token() -> None:
    assert reason(certificate(), key_set()) == "malformed"


@pytest.mark.parametrize(
    "header",
    [{"jku": "https://x.example"}, {"x5c": []}, {"kid": OTHER.kid}, {"kid": None}, {"jwk": {}}],
)
def test_the_header_is_exactly_as_documented(header: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        verified(written(**header))


def test_one_certificate_has_one_text() -> None:
    compact = certificate()
    head, body, _ = compact.split(".")
    spaced = b64u_encode(
        b'{"alg": "EdDSA","kid":"%s","typ":"key-certificate+jwt"}' % ROOT.kid.encode()
    )
    other_name = b64u_encode(
        b'{"alg":"Ed25519","kid":"%s","typ":"key-certificate+jwt"}' % ROOT.kid.encode()
    )
    twice = b64u_encode(b'{"alg":"EdDSA","alg":"EdDSA","kid":"%s","typ":"x"}' % ROOT.kid.encode())
    for changed in (spaced, other_name, twice):
        message = f"{changed}.{body}"
        with pytest.raises(InvalidRequestError):
            verified(f"{message}.{b64u_encode(ROOT.sign(message.encode()))}")
    for broken in (compact + "A", compact[:-1], head + "." + body, "", compact + "=", "A" * 2_049):
        with pytest.raises(InvalidRequestError):
            verified(broken)


def test_a_certificate_by_another_key_is_refused() -> None:
    for by in (OTHER, STRANGE):
        with pytest.raises(InvalidRequestError):
            verified(certificate(by))
    forged = certificate()[:-86] + certificate(OTHER)[-86:]
    with pytest.raises(InvalidRequestError):
        verified(forged)


def test_KM_10_a_token_within_its_certificate_is_good() -> None:
    keys = key_set(published(certificate()))
    assert reason(token(), keys) is None
    # The registry's own key needs no certificate, and has no narrower limits.
    assert reason(token(ROOT, life=900), keys) is None


@pytest.mark.parametrize(
    ("made", "now"),
    [
        ({"life": 601}, NOW + 200),
        ({"issued_at": NOW - 11, "life": 600}, NOW + 200),
        ({"issued_at": NOW + 3001, "life": 600}, NOW + 3001),
        # Long before the certificate is valid, by a reader whose clock is behind.
        ({"issued_at": NOW - 100, "life": 600}, NOW - 100),
    ],
    ids=["longer life", "issued before", "outlives the certificate", "not yet valid"],
)
def test_KM_10_a_token_beyond_its_certificate_is_as_good_as_forged(
    made: dict[str, Any], now: int
) -> None:
    assert reason(token(**made), key_set(published(certificate())), now=now) == "unknown"


def test_KM_10_an_ended_certificate_ends_all_of_its_tokens() -> None:
    keys = key_set(published(certificate()))
    last = token(issued_at=NOW + 3000, life=600)
    assert reason(last, keys, now=NOW + 3599) is None
    assert reason(last, keys, now=NOW + 3600) == "unknown"


def test_KM_10_the_clock_of_the_signer_may_be_ten_seconds_behind() -> None:
    keys = key_set(published(certificate()))
    assert reason(token(issued_at=NOW - 10), keys, now=NOW) is None


def test_KM_10_a_certificate_is_not_in_force_before_its_time() -> None:
    early = token(issued_at=NOW - 10)
    assert reason(early, key_set(published(certificate())), now=NOW - 11) == "unknown"


def test_a_certificate_is_short() -> None:
    issuer = "https://" + "a" * 2_000
    with pytest.raises(InvalidRequestError, match="too long"):
        verify_certificate(
            written({"iss": issuer}), keys={ROOT.kid: ROOT.public}, expected_issuer=issuer
        )


def test_KM_10_uncertified_key_proves_nothing() -> None:
    assert reason(token(), key_set()) == "unknown"
    for compact in (
        None,
        "",
        1,
        certificate(OTHER),
        certificate()[:-8] + "AAAAAAAA",
        written({"exp": 1}),
        token(ROOT),
    ):
        keys = key_set(published(compact))
        assert HELD.kid not in keys
        assert reason(token(), keys) == "unknown"
        assert reason(token(ROOT), keys) is None


def test_KM_10_a_certified_key_certifies_nothing() -> None:
    chained = published(certificate(HELD, STRANGE), STRANGE)
    keys = key_set(published(certificate()), chained)
    assert STRANGE.kid not in keys
    assert reason(token(STRANGE), keys) == "unknown"
    assert reason(token(), keys) is None


def test_KM_10_a_certificate_is_of_one_key_alone() -> None:
    assert STRANGE.kid not in key_set(published(certificate(), STRANGE))


def test_KM_10_a_certificate_of_another_registry_is_none_here() -> None:
    assert HELD.kid not in key_set(published(certificate(issuer="https://other.example")))


@pytest.mark.parametrize(
    "keys",
    [
        [published(certificate()), published(certificate())],
        [published(certificate(), kid=ROOT.kid)],
        [published(certificate(), d="A" * 43)],
        [published(certificate(), ROOT)],
    ],
    ids=["twice", "another name", "private member", "own key with a certificate"],
)
def test_JK_15_a_set_with_a_key_twice_or_a_private_member_is_refused_whole(
    keys: list[dict[str, Any]],
) -> None:
    with pytest.raises(InvalidRequestError):
        key_set(*keys)


def test_JK_20_a_kid_is_looked_up_in_the_set_alone() -> None:
    for kid in ("../../etc/passwd", "' OR 1=1 --", "awskms:key", ROOT.kid + " ", ""):
        odd = LocalSigner(PrivateKey.generate(), kid)
        assert reason(token(odd), key_set(published(certificate()))) == "unknown"
        with pytest.raises(InvalidRequestError):
            key_set(published(certificate(odd), odd))


def test_malformed_key_set_is_refused_and_unknown_keys_are_skipped() -> None:
    nothing: list[object] = [None, [], {}, {"keys": None}, {"keys": {}}]
    for odd in nothing:
        with pytest.raises(InvalidRequestError):
            read_key_set(odd, expected_issuer=ISSUER)
    keys = read_key_set(
        {"keys": [{"kty": "RSA"}, published(certificate())]}, expected_issuer=ISSUER
    )
    assert keys == {}
