"""The access token: made in one way, read in two steps, refused with the reasons of section 8."""

import contextlib
import json
from collections.abc import Callable

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.capability import Capability
from agentauth.protocol.encoding import b64u_decode, b64u_encode
from agentauth.protocol.errors import GrantTooLargeError, InvalidTokenError
from agentauth.protocol.jose import parse_compact, signing_input
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.token import (
    MAX_SIGNING_INPUT,
    TYP,
    TokenClaims,
    build_claims,
    check_token_size,
    read_claims,
    scope_of,
    sign_token,
    verify_access_token,
    verify_token,
)

NOW = 1_800_000_000
ISSUER, AUDIENCE = "https://registry.example", "https://api.sp.example"
SIGNER = LocalSigner(PrivateKey.generate(), "k1")
KEYS = {"k1": SIGNER.public}
JKT = PrivateKey.generate().public.thumbprint
AGENT, GRANT = "01940000-0000-7000-8000-000000000001", "01940000-0000-7000-8000-000000000002"
LIMITED = Capability.transact("payments", max_amount=("100.00", "EUR"))
CAPABILITIES = (
    Capability.read("calendar/work"),
    LIMITED,
    Capability.custom("acme.crm", "merge", "contacts"),
)


def claims_of(
    capabilities: tuple[Capability, ...] = CAPABILITIES, *, has_envelope: bool = True
) -> dict[str, object]:
    return build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        subject="user:1",
        agent_id=AGENT,
        jti="t-1",
        issued_at=NOW,
        expires_at=NOW + 900,
        jkt=JKT,
        grant_id=GRANT,
        grant_version=3,
        capabilities=capabilities,
        has_envelope=has_envelope,
    )


CLAIMS = claims_of()
HEADER: dict[str, object] = {"typ": "at+jwt", "alg": "EdDSA", "kid": "k1"}


def forge(claims: object, header: object = None) -> str:
    head = HEADER if header is None else header
    message = f"{b64u_encode(json.dumps(head).encode())}.{b64u_encode(json.dumps(claims).encode())}"
    return f"{message}.{b64u_encode(SIGNER.sign(message.encode()))}"


def verify(compact: str, *, now: int = NOW) -> TokenClaims:
    return verify_token(
        compact, keys=KEYS, expected_issuer=ISSUER, expected_audience=AUDIENCE, now=now
    )[1]


def reason_of(act: Callable[[], object]) -> str | None:
    with pytest.raises(InvalidTokenError) as caught:
        act()
    return caught.value.reason


def test_what_was_issued_is_read() -> None:
    token = verify(sign_token(CLAIMS, SIGNER))
    assert token == TokenClaims(
        jti="t-1",
        subject="user:1",
        agent_id=AGENT,
        jkt=JKT,
        grant_id=GRANT,
        grant_version=3,
        issued_at=NOW,
        expires_at=NOW + 900,
        scope="read:calendar/work custom:acme.crm.merge:contacts",
        capabilities=CAPABILITIES,
        online=True,
    )


def test_the_wire_form_is_that_of_section_7() -> None:
    jws = parse_compact(sign_token(CLAIMS, SIGNER))
    assert jws.header == HEADER
    claims = json.loads(jws.payload)
    assert claims["nbf"] == NOW - 10
    assert claims["cnf"] == {"jkt": JKT}
    assert claims["verify"] == "online"
    assert claims["authorization_details"][0]["type"] == "agentauth"
    assert len(claims["authorization_details"]) == 1
    without = claims_of(has_envelope=False)
    assert "verify" not in without
    assert not verify(sign_token(without, SIGNER)).online


def test_another_library_reads_the_same_token() -> None:
    # PyJWT shares no code with our reader: it reads our tokens as the plain signed JWTs that we
    # say we issue.
    read = jwt.decode(
        sign_token(CLAIMS, SIGNER),
        jwt.PyJWK(dict(SIGNER.public.jwk, alg="EdDSA")),
        algorithms=["EdDSA"],
        audience=str(CLAIMS["aud"]),
        issuer=str(CLAIMS["iss"]),
        # The token is valid at NOW, but PyJWT reads the system clock.
        options={"verify_exp": False, "verify_nbf": False, "verify_iat": False},
    )
    assert read == CLAIMS


def test_scope_names_only_what_nothing_limits() -> None:
    limited = Capability.read("files", constraints={"size": {"max": 5}})
    assert scope_of([LIMITED, limited]) == ""
    assert scope_of([limited, Capability.write("files/a")]) == "write:files/a"


@pytest.mark.parametrize("life", [-1, 0, 1, 900, 901])
def test_a_token_lives_1_to_900_seconds(life: int) -> None:
    with contextlib.nullcontext() if 1 <= life <= 900 else pytest.raises(ValueError, match="900"):
        build_claims(
            issuer=ISSUER,
            audience=AUDIENCE,
            subject="s",
            agent_id=AGENT,
            jti="j",
            issued_at=NOW,
            expires_at=NOW + life,
            jkt=JKT,
            grant_id=GRANT,
            grant_version=1,
            capabilities=CAPABILITIES,
            has_envelope=False,
        )


def test_KM_9_signing_input_of_4096_bytes_is_signed_and_4097_refused() -> None:
    # Base64url has no text of 4n + 1 characters, so some sizes need a name of another length in the
    # header.
    signers = [LocalSigner(PrivateKey.generate(), "k" * length) for length in range(1, 5)]
    sizes = {}
    for signer in signers:
        for pad in range(2_900):
            claims = {**CLAIMS, "pad": "x" * pad}
            size = len(signing_input(claims, typ=TYP, alg=signer.alg, header={"kid": signer.kid}))
            sizes[size] = claims, signer
    assert MAX_SIGNING_INPUT == 4_096
    for size in range(4_090, 4_097):
        assert len(parse_compact(sign_token(*sizes[size])).signing_input) == size
    for size in range(4_097, 4_101):
        claims, signer = sizes[size]
        with pytest.raises(GrantTooLargeError):
            sign_token(claims, signer)
        with pytest.raises(GrantTooLargeError):
            check_token_size(claims, alg=signer.alg, kid=signer.kid)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"iss": ISSUER + "/"}, "unknown"),
        ({"iss": ISSUER + ".evil"}, "unknown"),
        ({"iss": None}, "unknown"),
        ({"aud": "https://other.example"}, "unknown"),
        ({"aud": AUDIENCE + "/"}, "unknown"),
        ({"aud": []}, "unknown"),
        ({"aud": None}, "unknown"),
        ({"aud": [AUDIENCE, "https://other.example"]}, "unknown"),
        ({"aud": [AUDIENCE, AUDIENCE]}, "unknown"),
        ({"aud": "https://other.example", "exp": NOW - 5}, "unknown"),
        ({"sub": ""}, "malformed"),
        ({"sub": 5}, "malformed"),
        ({"client_id": None}, "malformed"),
        ({"client_id": "agent"}, "malformed"),
        ({"client_id": AGENT.upper() + "A"}, "malformed"),
        ({"jti": ""}, "malformed"),
        ({"jti": "x" * 257}, "malformed"),
        ({"exp": None}, "malformed"),
        ({"exp": float(NOW + 5)}, "malformed"),
        ({"exp": str(NOW)}, "malformed"),
        ({"exp": True}, "malformed"),
        ({"exp": NOW + 901}, "malformed"),
        ({"exp": NOW}, "expired"),
        ({"exp": NOW - 1}, "expired"),
        ({"iat": None}, "malformed"),
        ({"iat": NOW + 11}, "not_yet_valid"),
        ({"nbf": NOW + 1}, "not_yet_valid"),
        ({"nbf": None}, "malformed"),
        ({"nbf": "0"}, "malformed"),
        ({"cnf": None}, "malformed"),
        ({"cnf": JKT}, "malformed"),
        ({"cnf": {}}, "malformed"),
        ({"cnf": {"jkt": ""}}, "malformed"),
        ({"cnf": {"jkt": JKT + "\n"}}, "malformed"),
        ({"cnf": {"jkt": [JKT]}}, "malformed"),
        ({"cnf": {"jkt": JKT, "x5t#S256": JKT}}, "malformed"),
        ({"grant_id": "x"}, "malformed"),
        ({"grant_id": None}, "malformed"),
        ({"grant_version": 0}, "malformed"),
        ({"grant_version": True}, "malformed"),
        ({"grant_version": "1"}, "malformed"),
        ({"scope": None}, "malformed"),
        ({"verify": "offline"}, "malformed"),
        ({"verify": None}, "malformed"),
        ({"verify": ["online"]}, "malformed"),
        ({"authorization_details": []}, "malformed"),
        ({"authorization_details": {}}, "malformed"),
        ({"authorization_details": [1]}, "malformed"),
        ({"authorization_details": CLAIMS["authorization_details"] * 2}, "malformed"),  # type: ignore[operator]
        ({"authorization_details": [{"type": "agentauth"}]}, "malformed"),
        ({"authorization_details": [{"type": "agentauth", "capabilities": []}]}, "malformed"),
        (
            {
                "authorization_details": [
                    {"type": "other", "capabilities": [{"type": "read", "resource": "a"}]}
                ]
            },
            "malformed",
        ),
        (
            {
                "authorization_details": [
                    {"type": "agentauth", "capabilities": [{"type": "fly", "resource": "a"}]}
                ]
            },
            "malformed",
        ),
    ],
)
def test_a_claim_that_does_not_fit_is_refused_with_its_reason(
    change: dict[str, object], reason: str
) -> None:
    assert reason_of(lambda: verify(forge({**CLAIMS, **change}))) == reason


@pytest.mark.parametrize("name", sorted(CLAIMS.keys() - {"nbf", "verify"}))
def test_no_claim_may_be_missing(name: str) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != name}
    assert reason_of(lambda: verify(forge(claims))) == (
        "unknown" if name in {"iss", "aud"} else "malformed"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"exp": NOW + 1},
        {"iat": NOW + 10, "exp": NOW + 900},
        {"nbf": NOW},
        {"aud": [AUDIENCE]},
        {"extra": 1},
    ],
)
def test_what_the_rules_allow_is_accepted(change: dict[str, object]) -> None:
    assert verify(forge({**CLAIMS, **change})).jti == "t-1"


def test_a_jti_has_up_to_256_characters() -> None:
    assert verify(forge({**CLAIMS, "jti": "x" * 256})).jti == "x" * 256


def test_not_before_follows_from_the_issue_time_when_it_is_absent() -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != "nbf"}
    assert verify(forge(claims)).jti == "t-1"
    assert reason_of(lambda: verify(forge({**claims, "iat": NOW + 300}))) == "not_yet_valid"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"kid": "k2"}, "unknown"),
        ({"kid": "../../k1"}, "unknown"),
        ({"kid": 1}, "malformed"),
        ({"kid": None}, "malformed"),
        ({"kid": ["k1"]}, "malformed"),
        ({"typ": "JWT"}, "malformed"),
        ({"typ": "application/at+jwt"}, "malformed"),
        ({"typ": "dpop+jwt"}, "malformed"),
        ({"alg": "ES256"}, "unknown"),
        ({"alg": "none"}, "malformed"),
        ({"crit": ["exp"]}, "malformed"),
    ],
)
def test_a_header_outside_the_policy_is_refused(change: dict[str, object], reason: str) -> None:
    assert reason_of(lambda: verify(forge(CLAIMS, {**HEADER, **change}))) == reason


def test_forged_foreign_and_misaddressed_tokens_give_one_answer() -> None:
    other = LocalSigner(PrivateKey.generate(), "k1")
    answers = set()
    for compact in (
        sign_token(CLAIMS, other),
        sign_token({**CLAIMS, "aud": "https://other.example"}, SIGNER),
        sign_token({**CLAIMS, "iss": "https://evil.example"}, SIGNER),
        sign_token(CLAIMS, LocalSigner(PrivateKey.generate(), "k9")),
    ):
        with pytest.raises(InvalidTokenError) as caught:
            verify(compact)
        answers.add(str(caught.value))
    assert len(answers) == 1


def test_step_one_alone_does_not_read_our_claims() -> None:
    token = verify_access_token(
        forge({**CLAIMS, "grant_id": 5}),
        keys=KEYS,
        expected_issuer=ISSUER,
        expected_audience=AUDIENCE,
        now=NOW,
    )
    assert (token.client_id, token.jkt) == (AGENT, JKT)
    assert reason_of(lambda: read_claims(token)) == "malformed"


GOOD = sign_token(CLAIMS, SIGNER)


@given(st.integers(0, len(GOOD) - 1), st.characters(max_codepoint=0x7F) | st.just("\u00e9"))
def test_no_changed_token_is_accepted(position: int, character: str) -> None:
    changed = GOOD[:position] + character + GOOD[position + 1 :]
    if changed != GOOD:
        assert reason_of(lambda: verify(changed)) in {"malformed", "unknown"}


@given(st.integers(0, 2), st.binary(max_size=60))
def test_no_token_with_a_part_exchanged_is_accepted(part: int, data: bytes) -> None:
    segments = GOOD.split(".")
    if data != b64u_decode(segments[part]):
        segments[part] = b64u_encode(data)
        assert reason_of(lambda: verify(".".join(segments))) in {"malformed", "unknown"}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.sampled_from(sorted(CLAIMS)), json_values)
def test_a_signed_claim_of_any_value_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(InvalidTokenError):
        verify(forge({**CLAIMS, name: value}))
        assert (
            name in {"sub", "jti", "iat", "nbf", "exp", "grant_version", "scope"}
            or value == CLAIMS[name]
        )


@given(st.sampled_from(["typ", "alg", "kid", "crit", "jwk"]), json_values)
def test_a_signed_header_of_any_value_raises_nothing_else(name: str, value: object) -> None:
    with contextlib.suppress(InvalidTokenError):
        verify(forge(CLAIMS, {**HEADER, name: value}))
        assert name == "jwk"
