"""DPoP: a proof is valid for one request by one key, and for nothing else."""

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.dpop import (
    SPEND_SECONDS,
    LeakedKeyError,
    VerifiedProof,
    authorization_header,
    check_binding,
    check_nonce,
    make_proof,
    single_header,
    verify_proof,
)
from agentauth.protocol.encoding import b64u_decode, b64u_encode, sha256
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
    ProofNonceRequiredError,
)
from agentauth.protocol.keys import LocalSigner, PrivateKey, parse_jwk

NOW = 1_800_000_000
URL = "https://api.sp.example/v1/events"
TOKEN = "header.claims.signature"
SIGNER = LocalSigner(PrivateKey.generate())
CLAIMS = {
    "jti": "j-1",
    "htm": "POST",
    "htu": URL,
    "iat": NOW,
    "ath": b64u_encode(sha256(TOKEN.encode())),
}
HEADER = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": SIGNER.public.jwk}


def forge(claims: object, header: object = HEADER, signer: LocalSigner = SIGNER) -> str:
    """An object with a valid signature over any header and claims."""
    message = (
        f"{b64u_encode(json.dumps(header).encode())}.{b64u_encode(json.dumps(claims).encode())}"
    )
    return f"{message}.{b64u_encode(signer.sign(message.encode()))}"


def verify(compact: str, *, now: int = NOW) -> VerifiedProof:
    return verify_proof(
        compact, expected_method="POST", expected_url=URL, access_token=TOKEN, body=None, now=now
    )


def reason_of(act: Callable[[], object]) -> str | None:
    with pytest.raises(InvalidProofError) as caught:
        act()
    return caught.value.reason


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_made_proof_is_proved(alg: str) -> None:
    signer = LocalSigner(PrivateKey.generate("EdDSA" if alg == "EdDSA" else "ES256"))
    proof = verify(
        make_proof(
            signer,
            method="POST",
            url=URL + "?q=1#f",
            iat=NOW - 5,
            jti="j",
            access_token=TOKEN,
            nonce="n",
        )
    )
    assert (proof.key, proof.jkt) == (signer.public, signer.public.thumbprint)
    assert (proof.jti, proof.iat, proof.nonce, proof.body_hash) == ("j", NOW - 5, "n", None)
    assert proof.spent_until == NOW - 5 + SPEND_SECONDS


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"jti": ""}, "malformed"),
        ({"jti": None}, "malformed"),
        ({"jti": 1}, "malformed"),
        ({"jti": "j" * 257}, "malformed"),
        ({"htm": "GET"}, "method"),
        ({"htm": "post"}, "method"),
        ({"htm": None}, "malformed"),
        ({"htm": ["POST"]}, "malformed"),
        ({"htu": URL + "x"}, "url"),
        ({"htu": URL + "/"}, "url"),
        ({"htu": "/v1/events"}, "url"),
        ({"htu": URL.replace("https", "http")}, "url"),
        ({"htu": "https://api.sp.example/v1/x/../events"}, "url"),
        ({"htu": None}, "malformed"),
        ({"iat": NOW - 61}, "iat"),
        ({"iat": NOW + 61}, "iat"),
        ({"iat": float(NOW)}, "malformed"),
        ({"iat": str(NOW)}, "malformed"),
        ({"iat": True}, "malformed"),
        ({"iat": None}, "malformed"),
        ({"iat": -(2**53) + 1}, "iat"),
        ({"exp": NOW}, "iat"),
        ({"exp": NOW - 600}, "iat"),
        ({"exp": "soon"}, "malformed"),
        ({"exp": None}, "malformed"),
        ({"nbf": NOW + 61}, "iat"),
        ({"nbf": 1.5}, "malformed"),
        ({"nonce": ""}, "malformed"),
        ({"nonce": 5}, "malformed"),
        ({"ath": None}, "ath"),
        ({"ath": ""}, "ath"),
        ({"ath": CLAIMS["ath"] + "="}, "ath"),  # type: ignore[operator]
        ({"ath": b64u_encode(sha256(b"other"))}, "ath"),
        ({"ath": "\u00e9"}, "ath"),
        ({"ath": [CLAIMS["ath"]]}, "ath"),
    ],
)
def test_a_claim_that_does_not_fit_is_refused_with_its_reason(
    change: dict[str, object], reason: str
) -> None:
    assert reason_of(lambda: verify(forge({**CLAIMS, **change}))) == reason


@pytest.mark.parametrize("name", list(CLAIMS))
def test_no_claim_may_be_missing(name: str) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != name}
    assert reason_of(lambda: verify(forge(claims))) == ("ath" if name == "ath" else "malformed")


@pytest.mark.parametrize(
    "change",
    [
        {"iat": NOW - 60},
        {"iat": NOW + 60},
        {"exp": NOW + 1},
        {"nbf": NOW + 60},
        {"extra": {"a": [1.5]}},
        {"jti": "j" * 256},
        {"htu": "HTTPS://API.SP.EXAMPLE:443/v1/events?x#y"},
        {"bh": "a stranger's claim"},
    ],
)
def test_what_the_rules_allow_is_accepted(change: dict[str, object]) -> None:
    assert verify(forge({**CLAIMS, **change})).jkt == SIGNER.public.thumbprint


@pytest.mark.parametrize(
    "change",
    [
        {"typ": "JWT"},
        {"typ": "at+jwt"},
        {"typ": "application/dpop+jwt"},
        {"typ": None},
        {"alg": "none"},
        {"alg": "HS256"},
        {"jwk": None},
        {"jwk": []},
        {"jwk": {"kty": "oct", "k": "AA"}},
        {"jwk": {**SIGNER.public.jwk, "x": "AA"}},
        {"crit": ["x"]},
        {"b64": False},
    ],
)
def test_a_header_outside_the_policy_is_malformed(change: dict[str, object]) -> None:
    assert reason_of(lambda: verify(forge(CLAIMS, {**HEADER, **change}))) == "malformed"


@pytest.mark.parametrize("claims", [[], None, "x", 1])
def test_claims_are_an_object(claims: object) -> None:
    assert reason_of(lambda: verify(forge(claims))) == "malformed"


def test_another_key_in_the_header_is_a_bad_signature() -> None:
    other = PrivateKey.generate().public.jwk
    assert reason_of(lambda: verify(forge(CLAIMS, {**HEADER, "jwk": other}))) == "signature"
    p256 = PrivateKey.generate("ES256").public.jwk
    assert reason_of(lambda: verify(forge(CLAIMS, {**HEADER, "jwk": p256}))) == "signature"


def test_a_leaked_private_key_is_named_so_that_it_can_be_barred() -> None:
    # The example key of RFC 8037 appendix A.
    jwk = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
    leaked = {**jwk, "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"}
    with pytest.raises(LeakedKeyError) as caught:
        verify(forge(CLAIMS, {**HEADER, "jwk": leaked}))
    assert (caught.value.reason, caught.value.key) == ("malformed", parse_jwk(jwk))
    with pytest.raises(InvalidProofError) as other:
        verify(forge(CLAIMS, {**HEADER, "jwk": {**jwk, "d": "AA"}}))
    assert not isinstance(other.value, LeakedKeyError)


def native(compact: str, body: bytes | None, *, required: bool = False) -> VerifiedProof:
    return verify_proof(
        compact,
        expected_method="POST",
        expected_url=URL,
        access_token=None,
        body=body,
        now=NOW,
        require_body_hash=required,
    )


def made(body: bytes | None) -> str:
    return make_proof(SIGNER, method="POST", url=URL, iat=NOW, jti="j", body=body)


def test_at_the_registry_the_proof_covers_the_body() -> None:
    assert native(made(b"{}"), b"{}").body_hash == b64u_encode(sha256(b"{}"))
    assert native(made(None), b"").body_hash is None
    assert native(made(b""), b"").body_hash is None
    assert reason_of(lambda: native(made(b"{}"), b"{ }")) == "body"
    assert reason_of(lambda: native(made(None), b"{}")) == "body"
    assert reason_of(lambda: native(made(b"{}"), b"")) == "body"
    assert reason_of(lambda: native(made(None), None, required=True)) == "body"


@pytest.mark.parametrize("value", [None, 1, "", [b64u_encode(sha256(b"{}"))], "\u00e9"])
def test_a_body_hash_is_text(value: object) -> None:
    claims = {key: claim for key, claim in CLAIMS.items() if key != "ath"}
    assert reason_of(lambda: native(forge({**claims, "bh": value}), b"{}")) == "body"


def test_a_proof_for_a_service_provider_is_not_taken_by_the_registry() -> None:
    assert reason_of(lambda: native(forge(CLAIMS), b"")) == "ath"


def test_the_request_itself_must_have_a_url_we_compare() -> None:
    with pytest.raises(InvalidRequestError) as caught:
        verify_proof(
            forge(CLAIMS),
            expected_method="POST",
            expected_url="https://u@h/",
            access_token=TOKEN,
            body=None,
            now=NOW,
        )
    assert caught.value.code == "invalid_request"


def test_a_nonce_is_judged_by_the_callers_list() -> None:
    with_nonce, without = verify(forge({**CLAIMS, "nonce": "n1"})), verify(forge(CLAIMS))
    check_nonce(without, accepted=(), required=False)
    check_nonce(with_nonce, accepted={"n0", "n1"}, required=True)
    for proof, accepted, required in (
        (without, {"n1"}, True),
        (with_nonce, set(), False),
        (with_nonce, {"n0"}, True),
    ):
        with pytest.raises(ProofNonceRequiredError):
            check_nonce(proof, accepted=accepted, required=required)


def test_a_proof_by_another_key_is_a_fault_of_the_token() -> None:
    proof = verify(forge(CLAIMS))
    check_binding(proof, expected_jkt=SIGNER.public.thumbprint)
    with pytest.raises(InvalidTokenError) as caught:
        check_binding(proof, expected_jkt=PrivateKey.generate().public.thumbprint)
    assert caught.value.reason == "binding"


@pytest.mark.parametrize("line", ["DPoP abc.def.ghi", "dpop abc", "DPOP   a-._~+/=="])
def test_one_authorization_line_gives_the_token(line: str) -> None:
    assert authorization_header([line]) == line.rsplit(" ", maxsplit=1)[-1]


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], InvalidTokenError),
        (["Bearer abc"], InvalidTokenError),
        (["Basic YTpi"], InvalidTokenError),
        (["DPoP a", "DPoP a"], InvalidRequestError),
        (["DPoP a", "Bearer a"], InvalidRequestError),
        (["DPoP a,DPoP a"], InvalidRequestError),
        (["DPoP a, Bearer b"], InvalidRequestError),
        (["DPoP "], InvalidRequestError),
        (["DPoP"], InvalidRequestError),
        ([""], InvalidRequestError),
        ([" DPoP a"], InvalidRequestError),
        (["DPoP a "], InvalidRequestError),
        (["DPoP a b"], InvalidRequestError),
        (["DPoP\ta"], InvalidRequestError),
        (["DPoP a\n"], InvalidRequestError),
        (["DPoP \u00e9"], InvalidRequestError),
    ],
)
def test_other_authorization_lines_are_refused(
    lines: list[str], error: type[AgentAuthError]
) -> None:
    with pytest.raises(error) as caught:
        authorization_header(lines)
    assert type(caught.value) is error


@pytest.mark.parametrize("lines", [[], [""], ["a.b.c", "a.b.c"], ["a.b.c,a.b.c"], ["a.b.c, d.e.f"]])
def test_exactly_one_proof_header_is_read(lines: list[str]) -> None:
    assert reason_of(lambda: single_header(lines)) == "malformed"
    assert single_header(["a.b.c"]) == "a.b.c"


GOOD = make_proof(SIGNER, method="POST", url=URL, iat=NOW, jti="j", access_token=TOKEN)


@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=0x7F) | st.just("\u00e9"))
def test_no_changed_proof_is_accepted(position: int, character: str) -> None:
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed != GOOD:
        assert reason_of(lambda: verify(changed)) is not None


def replace_part(part: int, data: bytes) -> str:
    segments = GOOD.split(".")
    segments[part] = b64u_encode(data)
    return ".".join(segments)


@given(st.integers(0, 2), st.binary(max_size=60))
def test_no_proof_with_a_part_exchanged_is_accepted(part: int, data: bytes) -> None:
    if data != b64u_decode(GOOD.split(".")[part]):
        assert reason_of(lambda: verify(replace_part(part, data))) is not None


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from([*CLAIMS, "exp", "nbf", "nonce", "bh"]), json_values)
def test_a_signed_claim_of_any_value_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(InvalidProofError):
        proof = verify(forge({**CLAIMS, name: value}))
        assert name in {"jti", "exp", "nbf", "nonce", "bh"} or value == CLAIMS[name]
        assert 1 <= len(proof.jti) <= 256


@given(st.sampled_from(["typ", "alg", "jwk", "kid", "crit"]), json_values)
def test_a_signed_header_of_any_value_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(InvalidProofError):
        verify(forge(CLAIMS, {**HEADER, name: value}))
        assert name == "kid"
