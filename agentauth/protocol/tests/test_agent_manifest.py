"""The manifest: what it must say, which names it may have, and that only its own key signs it."""

from typing import Any

import pytest

from agentauth.protocol.agent_manifest import (
    MANIFEST_TYP,
    MAX_MANIFEST_SECONDS,
    VerifiedManifest,
    check_display_name,
    sign_manifest,
    verify_manifest,
)
from agentauth.protocol.capability import Capability
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import InvalidRequestError, ManifestError
from agentauth.protocol.jose import sign_compact
from agentauth.protocol.keys import LocalSigner, PrivateKey, PrivateMemberError
from agentauth.protocol.untrusted_text import check_description, check_host

ISSUER = "https://registry.example"
NOW = 1_795_000_000
SIGNER = LocalSigner(PrivateKey.generate())
CLAIMS: dict[str, Any] = {
    "aud": ISSUER,
    "iat": NOW,
    "exp": NOW + 86_400,
    "jti": "0123456789abcdef",
    "name": "Research Assistant",
    "description": "Reads calendars.",
    "model_origin": "models.example",
    "capabilities": [{"type": "read", "resource": "calendar"}],
}


def signed(
    *, signer: LocalSigner = SIGNER, jwk: Any = None, typ: str = MANIFEST_TYP, **claims: Any
) -> str:
    return sign_compact(
        {**CLAIMS, **claims},
        signer,
        typ=typ,
        header={"jwk": signer.public.jwk if jwk is None else jwk},
    )


def verify(compact: str, now: int = NOW) -> VerifiedManifest:
    return verify_manifest(compact, expected_audience=ISSUER, now=now)


@pytest.mark.parametrize("alg", ["EdDSA", "ES256"])
def test_a_signed_manifest_is_read_back(alg: Any) -> None:
    signer = LocalSigner(PrivateKey.generate(alg))
    compact = sign_manifest(
        signer,
        audience=ISSUER,
        issued_at=NOW,
        expires_at=NOW + MAX_MANIFEST_SECONDS,
        jti="j",
        name="Ana's Agent 🤖",
        description="First line.\nSecond line.",
        model_origin="models.example",
        capabilities=[
            Capability.read("calendar"),
            Capability.transact("payments", max_amount=("1.00", "EUR")),
        ],
    )
    manifest = verify(compact)
    assert manifest.jkt == signer.public.thumbprint
    assert manifest.name == "Ana's Agent 🤖"
    assert manifest.capabilities[1].label == "transact:payments"
    assert (manifest.issued_at, manifest.expires_at, manifest.jti) == (
        NOW,
        NOW + MAX_MANIFEST_SECONDS,
        "j",
    )
    assert manifest.compact == compact
    assert len(manifest.sha256) == 64


def test_content_ignores_times_and_jti_and_nothing_else() -> None:
    first = verify(signed())
    assert verify(signed(iat=NOW - 5, exp=NOW + 5, jti="other")).content() == first.content()
    for change in (
        {"name": "Other"},
        {"description": "Other"},
        {"model_origin": "other.example"},
        {"capabilities": [{"type": "write", "resource": "calendar"}]},
    ):
        assert verify(signed(**change)).content() != first.content()


def test_the_description_may_be_left_out() -> None:
    claims = {name: value for name, value in CLAIMS.items() if name != "description"}
    compact = sign_compact(claims, SIGNER, typ=MANIFEST_TYP, header={"jwk": SIGNER.public.jwk})
    assert verify(compact).description == ""


@pytest.mark.parametrize("name", [name for name in CLAIMS if name != "description"])
def test_a_claim_left_out_is_refused(name: str) -> None:
    claims = {key: value for key, value in CLAIMS.items() if key != name}
    with pytest.raises(ManifestError, match=f"{name}: is missing"):
        verify(sign_compact(claims, SIGNER, typ=MANIFEST_TYP, header={"jwk": SIGNER.public.jwk}))


@pytest.mark.parametrize(
    ("claims", "place"),
    [
        ({"aud": "https://other.example"}, "aud"),
        ({"aud": ISSUER + "/"}, "aud"),
        ({"aud": [ISSUER]}, "aud"),
        ({"iat": NOW + 61}, "iat"),
        ({"iat": "now"}, "iat"),
        ({"iat": True}, "iat"),
        ({"exp": NOW}, "exp"),
        ({"exp": NOW + MAX_MANIFEST_SECONDS + 1}, "exp"),
        ({"iat": NOW + 50, "exp": NOW + 50}, "exp"),
        ({"exp": None}, "exp"),
        ({"jti": ""}, "jti"),
        ({"jti": "x" * 257}, "jti"),
        ({"jti": 7}, "jti"),
        ({"name": ""}, "name"),
        ({"name": "x" * 81}, "name"),
        ({"name": None}, "name"),
        ({"description": "x" * 501}, "description"),
        ({"description": None}, "description"),
        ({"description": "safe\u202egnp.exe"}, "description"),
        ({"model_origin": "https://models.example"}, "model_origin"),
        ({"model_origin": "javascript:alert(1)"}, "model_origin"),
        ({"model_origin": "Models.example"}, "model_origin"),
        ({"model_origin": "10.0.0.1"}, "model_origin"),
        ({"model_origin": "models.example."}, "model_origin"),
        ({"model_origin": ""}, "model_origin"),
        ({"capabilities": []}, "capabilities"),
        ({"capabilities": [{"type": "read", "resource": ".."}]}, r"capabilities\[0\].resource"),
        (
            {"capabilities": [{"type": "transact", "resource": "p"}]},
            r"capabilities\[0\].max_amount",
        ),
        ({"logo": "javascript:alert(1)"}, "logo"),
    ],
    ids=str,
)
def test_a_wrong_claim_is_refused_by_name(claims: dict[str, Any], place: str) -> None:
    with pytest.raises(ManifestError, match=place):
        verify(signed(**claims))


def test_a_manifest_ends_at_its_exp() -> None:
    assert verify(signed(), now=NOW + 86_399).name == "Research Assistant"
    with pytest.raises(ManifestError, match="expired"):
        verify(signed(), now=NOW + 86_400)


def test_the_clock_of_an_agent_may_run_a_minute_ahead() -> None:
    assert verify(signed(iat=NOW + 60)).issued_at == NOW + 60


def test_sign_manifest_refuses_what_the_registry_would_refuse() -> None:
    with pytest.raises(ManifestError, match="name"):
        sign_manifest(
            SIGNER,
            audience=ISSUER,
            issued_at=NOW,
            expires_at=NOW + 1,
            jti="j",
            name=" x",
            description="",
            model_origin="models.example",
            capabilities=[Capability.read("a")],
        )


def test_only_the_key_in_the_header_makes_a_manifest() -> None:
    stranger = PrivateKey.generate()
    with pytest.raises(ManifestError):
        verify(signed(jwk=stranger.public.jwk))
    unfit: list[Any] = ["", [], {}, {"kty": "oct", "k": "AA"}]
    for jwk in unfit:
        with pytest.raises((ManifestError, PrivateMemberError)):
            verify(signed(jwk=jwk))


def test_another_kind_of_jws_is_not_a_manifest() -> None:
    for typ in ("JWT", "dpop+jwt", "at+jwt", "agent-key+jwt", "AGENT-MANIFEST+JWT"):
        with pytest.raises(ManifestError):
            verify(signed(typ=typ))
    for text in ("", "a.b.c", "x" * 9000, signed() + "A", signed()[:-2]):
        with pytest.raises(ManifestError):
            verify(text)


def test_private_key_in_manifest_header_is_reported_for_barring() -> None:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = PrivateKey.generate()
    raw = load_pem_private_key(key.to_pem(), None).private_bytes_raw()  # type: ignore[union-attr]
    with pytest.raises(PrivateMemberError) as caught:
        verify(signed(signer=LocalSigner(key), jwk={**key.public.jwk, "d": b64u_encode(raw)}))
    assert caught.value.derives == key.public


HIDDEN = [
    *"\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c",  # bidi
    *"\u200b\u200c\u200d\u2060\ufeff\u00ad\u180e\u2064",  # zero width
    "\U000e0041", "\U000e007f", "\U000e0001",  # tags
    *"\x00\x07\n\r\t\x1b\x7f\x85\u2028\u2029",  # controls and separators
    *"\u00a0\u2003\u3000\u2800\u3164\u115f\uffa0\u034f\ufe0f\U000e0100",  # blanks and selectors
    *"\U0001d159\U00013441\U00013442\U00016fe4",  # blank glyphs
    "\ue000", "\ud800",
]  # fmt: skip


@pytest.mark.parametrize("character", HIDDEN, ids=lambda character: f"U+{ord(character):04X}")
def test_AP_20_name_with_an_invisible_character_is_refused(character: str) -> None:
    with pytest.raises(InvalidRequestError, match="name"):
        check_display_name(f"Good{character}Agent")
    if character != "\n":
        with pytest.raises(InvalidRequestError, match="description"):
            check_description(f"Good{character}Agent")


@pytest.mark.parametrize("name", ["e\u0301", "\u0301abc", " a", "a ", "   ", "\u212b"])
def test_AP_20_a_name_that_looks_like_another_by_its_spelling_is_refused(name: str) -> None:
    with pytest.raises(InvalidRequestError, match="name"):
        check_display_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "{{7*7}}",
        "javascript:alert(1)",
    ],
)
def test_AP_19_markup_in_a_name_is_text_like_any_other(name: str) -> None:
    assert check_display_name(name) == name
    assert verify(signed(name=name)).name == name


@pytest.mark.parametrize(
    "name", ["x", "x" * 80, "Ünïcödé", "研究助手", "مساعد البحث", "सहायक", "O'Brien & Söhne", "🤖"]
)
def test_names_of_all_scripts_are_accepted(name: str) -> None:
    assert check_display_name(name) == name


def test_host_names() -> None:
    for good in (
        "models.example",
        "xn--bcher-kva.example",
        "a-b.c",
        "localhost",
        "4.models.example",
    ):
        assert check_host(good) == good
    longest = ".".join(["a" * 63] * 3 + ["a" * 61])
    assert check_host(longest) == longest
    bad: list[Any] = [
        "-a.example",
        "a-.example",
        "a..b",
        "a_b.c",
        "ä.example",
        "[::1]",
        "a" * 64,
        "a:80",
        "a/b",
        "2130706433",
        "0x7f000001",
        "127.1",
        "a.0x",
        None,
    ]
    for host in [*bad, longest + "a"]:
        with pytest.raises(InvalidRequestError, match="model_origin"):
            check_host(host)
