"""Writes docs/example.md, one story in exact bytes from fixed keys: `python -m
tests.vectors.example`.
"""

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from agentauth.protocol.agent_manifest import sign_manifest
from agentauth.protocol.approval_receipt import build_receipt
from agentauth.protocol.behavioural_envelope import parse_envelope
from agentauth.protocol.capability import parse_capabilities
from agentauth.protocol.dpop import make_proof
from agentauth.protocol.encoding import b64u_decode, b64u_encode, sha256, timestamp
from agentauth.protocol.passkey_statements import Statement
from agentauth.protocol.process_key_certificate import sign_certificate
from agentauth.protocol.statement_building import (
    AgentRef,
    ServiceProviderRef,
    Signing,
    approval_statement,
)
from agentauth.protocol.token import build_claims, sign_token

from .generate import AGENT, AT, AUDIENCE, ISSUER, NOW, TOKEN_KEY, identifier, local, seed

PAGE = Path(__file__).parents[2] / "docs" / "example.md"
RECEIPT_KEY = local("receipt key", "r1")
HELD_KEY = local("held key")
PASSKEY = ec.derive_private_key(int.from_bytes(seed("passkey"), "big"), ec.SECP256R1())
CREDENTIAL_ID = seed("credential id")[:16]
SUBJECT = b64u_encode(seed("pairwise subject"))
NAME, PROVIDER_NAME = "Research Assistant", "Acme"
URL = f"{AUDIENCE}/v1/payments"
AMOUNT = {"value": "12.50", "currency": "EUR"}
CAPABILITIES = [
    {"type": "read", "resource": "calendar/work"},
    {
        "type": "transact",
        "resource": "payments",
        "max_amount": {"value": "100.00", "currency": "EUR"},
    },
]
ENVELOPE = {
    "budgets": [{"value": "500.00", "currency": "EUR", "period": "day", "zone": "Europe/Berlin"}]
}
ACTION = {
    "type": "transact",
    "resource": "payments",
    "amount": AMOUNT,
    "arguments": {"payee": "ACME"},
}
CONSENT = (
    "Agent: “Research Assistant”\n"
    "Service: “Acme” at https://api.sp.example\n"
    "The agent may read “calendar/work” at “Acme”.\n"
    "The agent may spend up to €100.00 per payment at “Acme” (“payments”), at most €500.00 a day.\n"
    "At most €500.00 a day, counted in Europe/Berlin time.\n"
    "This ends on 15 February 2027, 09:00 (Europe/Berlin)."
)
VALID_UNTIL = AT.replace(month=2)


def manifest() -> str:
    return sign_manifest(
        AGENT,
        audience=ISSUER,
        issued_at=NOW,
        expires_at=NOW + 90 * 86_400,
        jti="manifest-1",
        name=NAME,
        description="Finds papers and pays for them.",
        model_origin="models.example",
        capabilities=parse_capabilities(CAPABILITIES),
    )


def native(path: str, body: dict[str, Any], jti: str) -> tuple[str, str]:
    """Body text and proof of one native API call."""
    text = json.dumps(body, separators=(",", ":"))
    proof = make_proof(
        AGENT, method="POST", url=f"{ISSUER}{path}", iat=NOW, jti=jti, body=text.encode()
    )
    return text, proof


def asked() -> dict[str, Any]:
    return {"service_provider": "acme", "capabilities": CAPABILITIES, "envelope": ENVELOPE}


def statement() -> Statement:
    agent = AgentRef(
        identifier("agent"), NAME, AGENT.public.thumbprint, sha256(manifest().encode()).hex()
    )
    signing = Signing(
        ISSUER, "registry.example", identifier("human"), agent, AT, seed("nonce"), CONSENT, "en"
    )
    return approval_statement(
        signing,
        decision="approve",
        grant_id=identifier("grant"),
        grant_version=1,
        service_provider=ServiceProviderRef(
            identifier("service provider"), PROVIDER_NAME, AUDIENCE
        ),
        capabilities=parse_capabilities(CAPABILITIES),
        envelope=parse_envelope(ENVELOPE),
        valid_until=VALID_UNTIL,
        second_step=True,
    )


def cose_key() -> bytes:
    """The passkey's COSE_Key: {1: 2, 3: -7, -1: 1, -2: x, -3: y}."""
    numbers = PASSKEY.public_key().public_numbers()
    x, y = (value.to_bytes(32, "big") for value in (numbers.x, numbers.y))
    return bytes.fromhex("a5010203262001215820") + x + bytes.fromhex("225820") + y


def assertion() -> dict[str, bytes]:
    """Passkey response: authenticator data (user present, verified), client data, signature."""
    client_data = json.dumps(
        {
            "type": "webauthn.get",
            "challenge": b64u_encode(statement().challenge()),
            "origin": ISSUER,
            "crossOrigin": False,
        },
        separators=(",", ":"),
    ).encode()
    data = sha256(b"registry.example") + b"\x05" + (7).to_bytes(4, "big")
    algorithm = ec.ECDSA(hashes.SHA256(), deterministic_signing=True)
    signature = PASSKEY.sign(data + sha256(client_data), algorithm)
    return {"authenticator_data": data, "client_data_json": client_data, "signature": signature}


def receipt() -> str:
    return build_receipt(
        statement(),
        credential_id=CREDENTIAL_ID,
        credential_public_key=cose_key(),
        human_id=identifier("human"),
        consent_text=CONSENT,
        signer=RECEIPT_KEY,
        **assertion(),
    )


def token_claims() -> dict[str, object]:
    return build_claims(
        issuer=ISSUER,
        audience=AUDIENCE,
        subject=SUBJECT,
        agent_id=identifier("agent"),
        jti=identifier("token"),
        issued_at=NOW,
        expires_at=NOW + 900,
        jkt=AGENT.public.thumbprint,
        grant_id=identifier("grant"),
        grant_version=1,
        capabilities=parse_capabilities(CAPABILITIES),
        has_envelope=True,
    )


def token() -> str:
    return sign_token(token_claims(), TOKEN_KEY)


def certified_jwks() -> dict[str, Any]:
    """The key set of a registry that certified a process key, made by `web-1:42`."""
    compact = sign_certificate(
        TOKEN_KEY,
        HELD_KEY.public,
        issuer=ISSUER,
        serial=identifier("certificate"),
        instance="web-1:42",
        not_before=NOW,
        not_after=NOW + 3_600,
    )
    (own,), (held,) = jwks(TOKEN_KEY)["keys"], jwks(HELD_KEY)["keys"]
    return {"keys": [own, held | {"certificate": compact}]}


def proof() -> str:
    return make_proof(
        AGENT, method="POST", url=URL, iat=NOW, jti="at-the-provider-1", access_token=token()
    )


def question() -> dict[str, Any]:
    return {
        "token": token(),
        "proof": proof(),
        "method": "POST",
        "url": URL,
        "action": ACTION,
        "idempotency_key": "invoice-2027-0042",
    }


def answer() -> dict[str, Any]:
    """The answer of verify; a test compares the real one."""
    return {
        "valid": True,
        "decision_id": identifier("decision"),
        "agent": {"id": identifier("agent"), "name": NAME, "model_origin": "models.example"},
        "subject": SUBJECT,
        "grant_id": identifier("grant"),
        "scope": "read:calendar/work",
        "limits": {
            "rate_remaining": None,
            "budgets": [{"currency": "EUR", "period": "day", "remaining": "487.50"}],
            "uses_remaining": None,
        },
        "expires_in": 900,
        "capability": CAPABILITIES[1],
    }


def page() -> str:
    template = (Path(__file__).parent / "example.md.template").read_text("utf-8")
    for name, value in values().items():
        template = template.replace("{{" + name + "}}", value)
    return template


def values() -> dict[str, str]:
    registration, registration_proof = native("/v1/agents", {"manifest": manifest()}, "register-1")
    request, request_proof = native("/v1/grants", asked(), "request-1")
    issue, issue_proof = native("/v1/tokens", {"grant_id": identifier("grant")}, "token-1")
    passkey = assertion()
    compacts = {
        "manifest": manifest(),
        "registration proof": registration_proof,
        "request proof": request_proof,
        "issue proof": issue_proof,
        "receipt": receipt(),
        "token": token(),
        "certificate": certified_jwks()["keys"][1]["certificate"],
        "proof": proof(),
    }
    return {
        "now": f"{NOW} ({timestamp(AT)})",
        "agent seed": seed("agent").hex(),
        "agent jwk": pretty(AGENT.public.jwk),
        "agent jkt": AGENT.public.thumbprint,
        "token jwks": pretty(jwks(TOKEN_KEY)),
        "certified jwks": pretty(certified_jwks()),
        "receipt jwks": pretty(jwks(RECEIPT_KEY)),
        "manifest sha256": sha256(manifest().encode()).hex(),
        "registration": registration,
        "registration bh": b64u_encode(sha256(registration.encode())),
        "agent id": identifier("agent"),
        "request": request,
        "issue": issue,
        "grant id": identifier("grant"),
        "consent": CONSENT,
        "statement": statement().canonical().decode(),
        "challenge": b64u_encode(statement().challenge()),
        "client data": passkey["client_data_json"].decode(),
        "authenticator data": passkey["authenticator_data"].hex(),
        "signature": passkey["signature"].hex(),
        "cose key": cose_key().hex(),
        "ath": b64u_encode(sha256(token().encode())),
        "question": pretty(question()),
        "answer": pretty(answer()),
        **{
            f"{name} {part}": text
            for name, compact in compacts.items()
            for part, text in opened(compact)
        },
        **compacts,
    }


def opened(compact: str) -> list[tuple[str, str]]:
    header, payload, _ = compact.split(".")
    return [("header", b64u_decode(header).decode()), ("payload", b64u_decode(payload).decode())]


def jwks(signer: Any) -> dict[str, Any]:
    return {"keys": [{**signer.public.jwk, "kid": signer.kid, "use": "sig", "alg": "EdDSA"}]}


def pretty(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
