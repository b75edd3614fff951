"""Writes the project's own vectors to own/, with the same bytes each run.

`python -m tests.vectors.generate`. For authors of clients in other languages: keys, proofs, tokens,
a manifest, statements, the chain. All keys come from seeds printed here, and have no other use.
"""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import Capability, parse_action
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import b64u_encode, sha256
from agentauth.protocol.identifiers import uuid7_text
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey, Signer
from agentauth.protocol.log_hashes import (
    EMPTY_LINK,
    CompactTree,
    entry_hash,
    field_commitment,
    leaf_hash,
    link,
)
from agentauth.protocol.statement_building import (
    AgentRef,
    ServiceProviderRef,
    Signing,
    approval_statement,
    claim_statement,
    confirmation_statement,
)
from agentauth.protocol.token import build_claims, sign_token
from tests.forging import changed_signature

OWN = Path(__file__).parent / "own"
NOW = 1_800_000_000
AT = datetime.fromtimestamp(NOW, UTC)
ISSUER, AUDIENCE = "https://registry.example", "https://api.sp.example"
URL = f"{AUDIENCE}/v1/events"


def seed(name: str) -> bytes:
    return sha256(f"agentauth test vector: {name}".encode())


def identifier(name: str) -> str:
    return uuid7_text(NOW * 1000, seed(name)[:10])


def local(name: str, kid: str | None = None) -> LocalSigner:
    return LocalSigner(PrivateKey(ed25519.Ed25519PrivateKey.from_private_bytes(seed(name))), kid)


class RepeatableP256:
    """An ES256 signer with nonces derived from key and message (RFC 6979), so its vectors never
    change.
    """

    alg = "ES256"

    def __init__(self, name: str) -> None:
        self._key = ec.derive_private_key(int.from_bytes(seed(name), "big"), ec.SECP256R1())
        self.public: PublicKey = PrivateKey(self._key).public
        self.kid = self.public.thumbprint

    def sign(self, message: bytes) -> bytes:
        algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
        r, s = decode_dss_signature(self._key.sign(message, algorithm))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")


AGENT, AGENT_P256, STRANGER = local("agent"), RepeatableP256("agent p256"), local("stranger")
TOKEN_KEY = local("token key", "k1")
CAPABILITIES = (
    Capability.read("calendar/work"),
    Capability.transact(
        "payments", max_amount=("100.00", "EUR"), constraints={"payee": {"in": ["ACME"]}}
    ),
)


def token(signer: Signer = AGENT, **change: Any) -> str:
    claims = build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        subject="pairwise-subject",
        agent_id=identifier("agent"),
        jti=identifier("token"),
        issued_at=NOW,
        expires_at=NOW + 900,
        jkt=signer.public.thumbprint,
        grant_id=identifier("grant"),
        grant_version=1,
        capabilities=CAPABILITIES,
        has_envelope=True,
    )
    return sign_token(claims | change, TOKEN_KEY)


def proof(signer: Signer = AGENT, **change: Any) -> str:
    arguments = {
        "method": "POST",
        "url": URL,
        "iat": NOW,
        "jti": "vector-1",
        "access_token": token(signer),
    }
    return make_proof(signer, **{**arguments, **change})


def keys() -> dict[str, Any]:
    rows = [
        {"name": name, "jwk": signer.public.jwk, "jkt": signer.public.thumbprint}
        for name, signer in (("agent", AGENT), ("agent p256", AGENT_P256), ("token key", TOKEN_KEY))
    ]
    return {
        "seed": "SHA-256 of the UTF-8 text 'agentauth test vector: ' and the name",
        "keys": rows,
    }


def proofs() -> dict[str, Any]:
    def case(name: str, compact: str, reason: str | None = None, **change: Any) -> dict[str, Any]:
        request = {"method": "POST", "url": URL, "access_token": token(), "body": None, "now": NOW}
        return {"id": name, "proof": compact, **request, **change, "reason": reason}

    native = {"method": "POST", "url": f"{ISSUER}/v1/grants", "access_token": None}
    body = '{"reason":"é"}'
    for_body = proof(url=native["url"], access_token=None, body=body.encode())
    return {
        "cases": [
            case("eddsa", proof()),
            case("es256", proof(AGENT_P256), access_token=token(AGENT_P256)),
            case("query-and-fragment-left-out", proof(url=f"{URL}?a=1#b"), url=f"{URL}?c=2"),
            case("percent-encoding", proof(url=f"{URL}/%c3%a9"), url=f"{URL}/%C3%A9"),
            case("nonce", proof(nonce="server-nonce")),
            case("native-body", for_body, **native, body=body),
            case("native-other-body", for_body, "body", **native, body=body + " "),
            case("other-method", proof(), "method", method="PUT"),
            case("other-url", proof(), "url", url=f"{URL}/1"),
            case("too-old", proof(), "iat", now=NOW + 61),
            case("other-token", proof(), "ath", access_token=token(STRANGER)),
            case("changed-signature", changed_signature(proof()), "signature"),
            case("token-as-proof", token(), "malformed"),
        ]
    }


def tokens() -> dict[str, Any]:
    def case(name: str, compact: str, reason: str | None = None, now: int = NOW) -> dict[str, Any]:
        return {"id": name, "token": compact, "now": now, "reason": reason}

    foreign = sign_token({"iss": ISSUER, "aud": AUDIENCE}, local("stranger", "k1"))
    return {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "issuer_jwks": {
            "keys": [{**TOKEN_KEY.public.jwk, "kid": "k1", "alg": "EdDSA", "use": "sig"}]
        },
        "cases": [
            case("valid", token()),
            case("last-second", token(), now=NOW + 899),
            case("expired", token(), "expired", NOW + 900),
            case("not-yet-valid", token(), "not_yet_valid", NOW - 11),
            case("other-audience", token(aud="https://other.example"), "unknown"),
            case("other-issuer", token(iss="https://other.example"), "unknown"),
            case("forged", foreign, "unknown"),
            case("too-long-a-life", token(exp=NOW + 901), "malformed"),
            case("unbound", token(cnf={}), "malformed"),
            case("proof-as-token", proof(), "malformed"),
        ],
    }


def manifests() -> dict[str, Any]:
    compact = sign_manifest(
        AGENT,
        audience=ISSUER,
        issued_at=NOW,
        expires_at=NOW + 86_400,
        jti="manifest-1",
        name="Calendar helper",
        description="Keeps the calendar of its owner in order.",
        model_origin="models.example",
        capabilities=CAPABILITIES,
    )
    return {
        "audience": ISSUER,
        "now": NOW,
        "manifest": compact,
        "sha256": sha256(compact.encode()).hex(),
    }


def statements() -> dict[str, Any]:
    consent = "Agent: “Calendar helper”\nThe agent may read “calendar/work”.\n"
    compact = manifests()["manifest"]
    agent = AgentRef(
        identifier("agent"),
        "Calendar helper",
        AGENT.public.thumbprint,
        sha256(compact.encode()).hex(),
    )
    provider = ServiceProviderRef(identifier("service provider"), "Example provider", AUDIENCE)
    signing = Signing(
        ISSUER, "registry.example", identifier("human"), agent, AT, seed("nonce"), consent, "en"
    )
    grant: dict[str, Any] = {
        "grant_id": identifier("grant"),
        "grant_version": 1,
        "service_provider": provider,
    }
    approval = approval_statement(
        signing,
        **grant,
        decision="approve",
        capabilities=CAPABILITIES,
        envelope=parse_envelope({"max_uses": 10}),
        valid_until=AT.replace(year=AT.year + 1),
        second_step=True,
    )
    amount = {"value": "12.50", "currency": "EUR"}
    action = {
        "type": "transact",
        "resource": "payments",
        "amount": amount,
        "arguments": {"payee": "ACME"},
    }
    confirmation = confirmation_statement(
        signing,
        **grant,
        decision="confirm",
        confirmation_id=identifier("confirmation"),
        action=parse_action(action),
        idempotency_key="operation-1",
    )
    rows = [
        {
            "statement": statement.to_json(),
            "canonical": statement.canonical().decode(),
            "challenge": b64u_encode(statement.challenge()),
        }
        for statement in (approval, confirmation, claim_statement(signing))
    ]
    return {"consent_text": consent, "statements": rows}


def chain() -> dict[str, Any]:
    tree, previous, rows = CompactTree(), EMPTY_LINK, []
    for number in range(5):
        name = {"salt": b64u_encode(seed(f"field salt {number}")), "value": f"Agent {number} é"}
        commitment = field_commitment(name["value"], seed(f"field salt {number}"))
        event = {
            "id": identifier(f"event {number}"),
            "kind": "registry.agent.registered",
            "at": "2027-01-15T08:00:00Z",
            "actor": {"kind": "agent", "id": identifier("agent")},
            "outcome": "success",
            "data": {"name": {"commitment": commitment}, "number": number},
        }
        salt = seed(f"event salt {number}")
        entry = entry_hash(event, salt)
        leaf = leaf_hash(entry)
        previous = link(previous, leaf)
        tree.append(leaf)
        row = {"entry": entry, "leaf_hash": leaf, "link": previous, "root": tree.root()}
        encoded = {key: b64u_encode(value) for key, value in row.items()}
        rows.append(
            {"event": event, "salt": b64u_encode(salt), "openings": {"name": name}, **encoded}
        )
    return {
        "hashes": "base64url; root is that of the tree up to and with this leaf",
        "leaves": rows,
    }


def documents() -> dict[str, str]:
    """File name → content, as committed."""
    parts = (keys, proofs, tokens, manifests, statements, chain)
    return {
        f"{part.__name__}.json": json.dumps(part(), ensure_ascii=False, indent=1) + "\n"
        for part in parts
    }


if __name__ == "__main__":
    OWN.mkdir(exist_ok=True)
    for name, content in documents().items():
        (OWN / name).write_text(content, "utf-8")
