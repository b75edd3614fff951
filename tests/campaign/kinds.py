"""The signed kinds: a valid proof, token, manifest and receipt, and each requirement to break.

A broken object carries a good signature, so only the requirement can refuse it.
"""

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from agentauth.protocol.agent_manifest import sign_manifest, verify_manifest
from agentauth.protocol.approval_receipt import build_receipt, verify_receipt
from agentauth.protocol.dpop import WINDOW_SECONDS, make_proof, verify_proof
from agentauth.protocol.errors import (
    InvalidProofError,
    InvalidReceiptError,
    InvalidTokenError,
    ManifestError,
)
from agentauth.protocol.keys import PrivateMemberError, Signer
from agentauth.protocol.passkey_statements import Statement, parse_statement
from agentauth.protocol.tests.passkey import Passkey
from agentauth.protocol.token import verify_token
from tests.campaign.grammar import break_capabilities
from tests.campaign.mutants import (
    altered,
    b64,
    changed_bytes,
    changed_text,
    confused,
    get,
    paths,
    put,
    unb64,
)
from tests.campaign.signed import Claims, Mutant, Original, Rule, Signed, required, value
from tests.vectors import generate
from tests.vectors.generate import (
    AGENT,
    AGENT_P256,
    AUDIENCE,
    ISSUER,
    NOW,
    STRANGER,
    TOKEN_KEY,
    URL,
)

KEYS = {"k1": TOKEN_KEY.public}
BODY = (
    b'{"service_provider":"acme",'
    b'"capabilities":[{"type":"read","resource":"calendar"}],"reason":"x"}'
)
GRANTS = f"{ISSUER}/v1/grants"
# Times outside every window, and numbers we never issue.
FAR = (0, -1, -(2**53) + 1, 2**53 - 1, NOW * 1000, 10**11)


def _checked(*, token: str | None, body: bytes | None, url: str = URL) -> Callable[[str], object]:
    def check(compact: str) -> object:
        return verify_proof(
            compact,
            expected_method="POST",
            expected_url=url,
            access_token=token,
            body=body,
            now=NOW,
        )

    return check


def _proof_originals() -> list[tuple[Original, Callable[[str], object]]]:
    made = []
    for signer in (AGENT, AGENT_P256):
        token = generate.token(signer)
        others = [generate.proof(signer, jti=f"other-{number}") for number in range(3)]
        at_provider = Original(generate.proof(signer), signer, others)
        native = make_proof(signer, method="POST", url=GRANTS, iat=NOW, jti="native", body=BODY)
        made.append((at_provider, _checked(token=token, body=None)))
        made.append((Original(native, signer, others), _checked(token=None, body=BODY, url=GRANTS)))
    return made


def _url(random: Random, right: Any) -> str:
    """Another URL, never another spelling of one (upper-case host, a query, the default port)."""
    origin, _, path = str(right).partition("/v1")
    path = "/v1" + path
    scheme, host = origin.split("://")
    other = "http" if scheme == "https" else "https"
    return random.choice(
        (
            origin + path + "/", origin + path + "x", origin + path[:-1], origin + "/" + path,
            origin + path.upper(),
            origin, origin + "/v1/..", origin + "/v1/%2e%2e/v1/events", origin + "/./" + path,
            origin + path + "%2f",
            origin + path.replace("s", "%73"), origin + "\\" + path, f"{other}://{host}{path}",
            f"{scheme}://{host}:444{path}",
            f"https://a@{host}{path}", f"https://{host}.{path}",
            f"https://{host}.evil.example{path}", f"https:{path}",
            f"https://evil.example{path}", f"https://evil.example#{origin}{path}", path,
            f"//{host}{path}", " " + right,
            right + " ", right + "\n", right + "\0", right.replace("h", "ｈ", 1),
            f"ftp://{host}{path}", "javascript:0",
            f"https://{host}:0{path}", f"https://{host}:99999{path}", right + "x" * 2100,
            f"https://[::1]{path}",
        )
    )  # fmt: skip


def _private_member(random: Random, header: Claims, claims: Claims) -> None:
    header["jwk"] = header["jwk"] | random.choice(
        (
            {"d": b64(random.randbytes(32))},
            {"d": None},
            {"k": "AA"},
            {"oth": []},
            {"p": ""},
            {"d": header["jwk"]["x"]},
        )
    )


def _jwk(random: Random, header: Claims, claims: Claims) -> None:
    jwk = dict(header["jwk"])
    name = random.choice(("kty", "crv", "x"))
    jwk[name] = random.choice((confused, altered))(random, jwk[name])
    header["jwk"] = random.choice(
        (
            jwk,
            {key: jwk[key] for key in jwk if key != name},
            {"kty": "oct", "k": "AAAA"},
            {"kty": "RSA", "n": "AQAB" * 90, "e": "AQAB"},
            header["jwk"] | {"use": "enc"},
            header["jwk"] | {"key_ops": ["sign"]},
            header["jwk"] | {"alg": "HS256"},
            header["jwk"] | {"x": header["jwk"]["x"] + "="},
            {
                "kty": "OKP",
                "crv": "Ed25519",
                "x": b64(random.choice((bytes(32), b"\1" + bytes(31), b"\xff" * 32))),
            },
            {"kty": "EC", "crv": "P-256", "x": b64(bytes(32)), "y": b64(bytes(32))},
            {"kty": "EC", "crv": "P-256", "x": b64(b"\xff" * 32), "y": b64(b"\xff" * 32)},
            STRANGER.public.jwk,
            confused(random, header["jwk"]),
        )
    )


def _no_jwk(random: Random, header: Claims, claims: Claims) -> None:
    del header["jwk"]


def _covering(random: Random, header: Claims, claims: Claims) -> None:
    """The proof's `ath` or `bh`: removed, another's, or in another spelling."""
    name = "ath" if "ath" in claims else "bh"
    right = claims[name]
    wrong = (
        ..., b64(random.randbytes(32)), right + "=", right[:-1], right + "A", right.lower(),
        right.swapcase(), unb64(right).hex(), right + " ", "é" + right, "", [right],
        {"S256": right}, confused(random, right), right[::-1], altered(random, right),
    )  # fmt: skip
    chosen = random.choice(wrong)
    if chosen is ...:
        del claims[name]
    else:
        claims[name] = chosen


def _ath_where_none_belongs(random: Random, header: Claims, claims: Claims) -> None:
    """At the registry no token is used; at a service provider the `ath` is another token's."""
    claims["ath"] = b64(random.randbytes(32))


PROOF_RULES: dict[str, Rule] = {
    **required("jti", "htm", "htu", "iat"),
    "jti": value("jti", "", "x" * 257, "x" * 5000),
    "htm": value("htm", "post", "Post", "GET", "PUT", "POST ", "", "PO\0ST", "POSТ", "POST,GET"),
    "htu": value("htu", _url),
    "iat": value(
        "iat", *FAR,
        lambda random, right: (
            right + random.choice((-1, 1)) * (WINDOW_SECONDS + random.randrange(1, 10**6))
        ),
    ),
    "exp": value("exp", NOW, NOW - 1, 0, -1, None, "x", str(NOW + 9), NOW + 0.5, True, []),
    "nbf": value("nbf", NOW + 61, 2**53 - 1, None, "x", NOW + 0.5, True, []),
    "nonce": value("nonce", None, "", 1, [], {}),
    "what it covers": _covering,
    "ath where none belongs": _ath_where_none_belongs,
    "jwk": _jwk,
    "no jwk": _no_jwk,
    "a private member": _private_member,
}  # fmt: skip


def _other_request(random: Random, index: int) -> tuple[Mutant, Callable[[Any], object]]:
    """The proof is good, but comes with another method, URL, token, body or time."""
    original, _ = proofs.originals[index]
    native = index % 2
    token, body = generate.token(original.signer), BODY
    right: dict[str, Any] = {
        "expected_method": "POST",
        "expected_url": GRANTS if native else URL,
        "access_token": None if native else token,
        "body": body if native else None,
        "now": NOW,
    }
    wrong: dict[str, Callable[[], Any]] = {
        "expected_method": lambda: random.choice(("GET", "post", "PUT", "DELETE", "POST ")),
        "expected_url": lambda: random.choice(
            (f"{right['expected_url']}/x", f"{ISSUER}/v1/tokens", f"{AUDIENCE}/v1")
        ),
        "now": lambda: NOW + random.choice((-1, 1)) * (WINDOW_SECONDS + random.randrange(1, 10**6)),
        ("body" if native else "access_token"): lambda: (
            changed_bytes(random, body) if native else changed_text(random, token)[1]
        ),
    }
    name = random.choice(list(wrong))
    changed = right | {name: wrong[name]()}
    shown = Mutant(
        f"another request: {name.removeprefix('expected_')}", (original.compact, changed)
    )
    return shown, lambda pair: verify_proof(pair[0], **pair[1])


proofs = Signed("proof", 30, InvalidProofError, _proof_originals(), PROOF_RULES, _other_request)


def _check_token(compact: str) -> object:
    return verify_token(
        compact, keys=KEYS, expected_issuer=ISSUER, expected_audience=AUDIENCE, now=NOW
    )[1]


def _token_originals() -> list[tuple[Original, Callable[[str], object]]]:
    others = [generate.token(AGENT, jti=f"other-{number}") for number in range(2)] + [
        generate.proof()
    ]
    compacts = (generate.token(), generate.token(AGENT_P256))
    return [(Original(compact, TOKEN_KEY, others), _check_token) for compact in compacts]


def _kid(random: Random, header: Claims, claims: Claims) -> None:
    right = header["kid"]
    header["kid"] = random.choice(
        (
            "k2", "", "K1", right + " ", f"../{right}", "../../../../dev/null", "k1' OR '1'='1",
            "k1\0", "http://evil/k1",
            confused(random, right), AGENT.kid,
        )
    )  # fmt: skip
    # The attacker sends its own key along under its own `kid`; it must not be looked up.
    if random.random() < 0.3:
        header["jwk"] = STRANGER.public.jwk


def _no_kid(random: Random, header: Claims, claims: Claims) -> None:
    del header["kid"]


def _details(random: Random, right: Any) -> Any:
    return random.choice(
        (
            [], [*right, *right], [right[0] | {"type": "other"}], [right[0] | {"x": 1}],
                [right[0] | {"capabilities": []}],
            [{"type": "agentauth"}], [right[0] | {"capabilities": break_capabilities(random,
                right[0]["capabilities"])}],
            [confused(random, right[0])],
        )
    )  # fmt: skip


TOKEN_RULES: dict[str, Rule] = {
    **required(
        "iss", "sub", "client_id", "jti", "iat", "exp", "cnf", "grant_id", "grant_version",
        "authorization_details", "scope"
    ),
    "aud": value("aud", "https://other.example", AUDIENCE + "/", "", None, [], [AUDIENCE, "x"],
                 [[AUDIENCE]], 1, {}, True),
    "iss": value("iss", ISSUER + "/", ISSUER.upper(), "https://evil.example",
                 ISSUER.replace("https", "http"), ISSUER + "\0"),
    "exp": value("exp", NOW, NOW - 1, NOW - 900, NOW + 901, *FAR),
    "iat": value("iat", NOW + 11, NOW + 900, NOW - 1, *FAR),
    "nbf": value("nbf", NOW + 1, NOW + 900, 2**53 - 1, None, "x", float(NOW), True, []),
    "jti": value("jti", "", "x" * 257),
    "sub": value("sub", ""),
    "ids": value("client_id", "", "x", "00000000-0000-0000-0000-00000000000g",
                 lambda _, right: right.upper()),
    "grant_id": value("grant_id", "", "x", lambda _, right: right + "\n",
                      lambda _, right: right[:-1]),
    "grant_version": value("grant_version", 0, -1, True, 1.0, "1", None),
    "cnf": value(
        "cnf", {}, {"jkt": ""}, {"jkt": None}, {"jkt": "x" * 42}, {"jwk": AGENT.public.jwk},
        {"jkt": ["x" * 43]},
        lambda _, right: right | {"x5t#S256": "x"}, lambda _, right: {"jkt": right["jkt"] + "="},
    ),
    "authorization_details": value("authorization_details", _details),
    "verify": value("verify", "offline", "", None, True, "Online", ["online"]),
    "kid": _kid,
    "no kid": _no_kid,
}  # fmt: skip

tokens = Signed("token", 25, InvalidTokenError, _token_originals(), TOKEN_RULES)


def _manifest(signer: Signer, **changes: Any) -> str:
    arguments: dict[str, Any] = {
        "audience": ISSUER,
        "issued_at": NOW,
        "expires_at": NOW + 86_400,
        "jti": "manifest-1",
        "name": "Research Assistant",
        "description": "Reads papers",
        "model_origin": "models.example",
        "capabilities": generate.CAPABILITIES,
    }
    return sign_manifest(signer, **(arguments | changes))


def _check_manifest(compact: str) -> object:
    return verify_manifest(compact, expected_audience=ISSUER, now=NOW)


def _manifest_originals() -> Sequence[tuple[Original, Callable[[str], object]]]:
    made = []
    for signer in (AGENT, AGENT_P256):
        others = [_manifest(signer, jti=f"other-{number}") for number in range(2)] + [
            generate.proof(signer)
        ]
        made.append((Original(_manifest(signer), signer, others), _check_manifest))
    return made


UNREADABLE = (
    "\u202e",
    "\u2066",
    "\u200b",
    "\u00ad",
    "\ufeff",
    "\U000e0041",
    "\u3164",
    "\u00a0",
    "\u2028",
    "\0",
    "e\u0301",
    "\ue000",
)


def _unreadable(random: Random, right: Any) -> str:
    at = random.randrange(len(right))
    return str(right[:at] + random.choice(UNREADABLE) + right[at:])


MANIFEST_RULES: dict[str, Rule] = {
    **required("aud", "iat", "exp", "jti", "name", "model_origin", "capabilities"),
    "aud": value("aud", ISSUER + "/", "https://evil.example", [ISSUER], ISSUER.upper(), ""),
    "iat": value("iat", NOW + 61, NOW + 86_400, NOW - 367 * 86_400, -1, 2**53, 2**53 - 1),
    "exp": value("exp", NOW, NOW - 1, 0, -1, NOW + 366 * 86_400 + 1, 2**53 - 1, 2**60),
    "jti": value("jti", "", "x" * 257, "\0", "\ud800"),
    "name": value("name", "", " ", " x", "x ", "x" * 81, "\u0301x", "\n", _unreadable),
    "description": value("description", "x" * 501, None, 1, [], {}, "\r", _unreadable),
    "model_origin": value(
        "model_origin", "", "Models.example", "https://models.example", "models.example/",
        "models.example.", "127.0.0.1",
        "2130706433", "[::1]", "a..b", "-a.example", "a" * 64 + ".example", "модель.example",
        "models.example:443", "a b",
        "models.example\n", "javascript:0", "①②⑦.0.0.1",
    ),
    "capabilities": value("capabilities", [], break_capabilities),
    "a claim that is not known": value("admin", True, 1, "x", None),
    "jwk": _jwk,
    "no jwk": _no_jwk,
    "a private member": _private_member,
}  # fmt: skip

manifests = Signed(
    "manifest", 12, (ManifestError, PrivateMemberError), _manifest_originals(), MANIFEST_RULES
)

_MADE = generate.statements()
CONSENT = _MADE["consent_text"]
STATEMENTS = [parse_statement(row["statement"]) for row in _MADE["statements"]]


def _receipt(statement: Statement, passkey: Passkey) -> str:
    return build_receipt(
        statement,
        credential_id=passkey.credential_id,
        credential_public_key=passkey.cose,
        human_id=str(statement.body["human_id"]),
        consent_text=CONSENT,
        signer=TOKEN_KEY,
        **passkey.answer(statement.challenge(), origin=ISSUER, rp_id="registry.example"),
    )


def _check_receipt(compact: str) -> object:
    return verify_receipt(compact, keys=KEYS, expected_issuer=ISSUER)


def _receipt_originals() -> Sequence[tuple[Original, Callable[[str], object]]]:
    made = []
    for alg in ("ES256", "EdDSA", "RS256"):
        passkey = Passkey(alg)
        compacts = [_receipt(statement, passkey) for statement in STATEMENTS]
        made += [
            (Original(compact, TOKEN_KEY, [*compacts, generate.token()]), _check_receipt)
            for compact in compacts
        ]
    return made


def _in_statement(random: Random, header: Claims, claims: Claims) -> None:
    """The registry misreports one member of the statement the user signed."""
    path = random.choice(paths(claims["statement"]))
    right = get(claims["statement"], path)
    wrong = ... if random.random() < 0.2 else random.choice((altered, confused))(random, right)
    if right is None:
        wrong = "x"
    claims["statement"] = put(claims["statement"], path, wrong)


def _bytes_of(name: str) -> Rule:
    """Another value for a member that the passkey's signature covers, or that carries it."""

    def rule(random: Random, header: Claims, claims: Claims) -> None:
        right = unb64(claims[name])
        claims[name] = random.choice(
            (b64(changed_bytes(random, right)), claims[name] + "=", confused(random, "x"))
        )

    return rule


RECEIPT_MEMBERS = (
    "statement", "human_id", "consent_text", "credential_id", "credential_public_key",
    "authenticator_data",
    "client_data_json", "signature",
)  # fmt: skip
RECEIPT_RULES: dict[str, Rule] = {
    **required(*RECEIPT_MEMBERS),
    "statement": _in_statement,
    "human_id": value("human_id", generate.identifier("mallory"), ""),
    "consent_text": value(
        "consent_text", CONSENT + " ", CONSENT[:-1], CONSENT.replace("read", "write"), ""
    ),
    **{f"bytes of {name}": _bytes_of(name) for name in RECEIPT_MEMBERS[4:]},
    "a member that is not known": value("x", 1, None),
    "kid": _kid,
    "no kid": _no_kid,
}

receipts = Signed("receipt", 8, InvalidReceiptError, _receipt_originals(), RECEIPT_RULES)

SIGNED = (proofs, tokens, manifests, receipts)
