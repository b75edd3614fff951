"""The values of the worked example that the API's description shows: `python -m tests.vectors.openapi` writes story.json."""

import json
from pathlib import Path
from typing import Any

from agentauth.protocol.chain import field_commitment
from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.key_change import sign_key_change
from agentauth.protocol.notes import verifier_key

from . import example
from .generate import AGENT, AUDIENCE, ISSUER, NOW, TOKEN_KEY, identifier, local, seed

STORY = Path(__file__).parents[2] / "agentauth" / "openapi" / "story.json"
NAMES = (
    "agent",
    "human",
    "grant",
    "service provider",
    "token",
    "decision",
    "confirmation",
    "event",
    "request",
)


NEXT_KEY = local("next key")


def new_key() -> str:
    """The statement by which the agent's next key takes over."""
    return sign_key_change(
        NEXT_KEY,
        audience=ISSUER,
        issued_at=NOW,
        jti="key-change-1",
        agent_id=identifier("agent"),
        old_jkt=AGENT.public.thumbprint,
    )


def story() -> dict[str, Any]:
    """Ids, signed objects and terms of docs/example.md, by the names the description uses."""
    return {
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "ids": {name: identifier(name) for name in NAMES},
        "jkt": AGENT.public.thumbprint,
        "manifest": example.manifest(),
        "receipt": example.receipt(),
        "token": example.token(),
        "claims": example.token_claims(),
        "new_key": new_key(),
        "new_jkt": NEXT_KEY.public.thumbprint,
        "audit_vkey": verifier_key("registry.example/v1/audit", local("audit key").public),
        "token_keys": example.jwks(TOKEN_KEY),
        "receipt_keys": example.jwks(example.RECEIPT_KEY),
        "capabilities": example.CAPABILITIES,
        "envelope": example.ENVELOPE,
        "request": example.asked(),
        "question": example.question(),
        "answer": example.answer(),
        "salt": b64u_encode(seed("salt")),
        "opening": {"salt": b64u_encode(seed("opening")), "value": example.NAME},
        "commitment": field_commitment(example.NAME, seed("opening")),
    }


if __name__ == "__main__":
    STORY.write_text(json.dumps(story(), ensure_ascii=False, indent=1) + "\n", "utf-8")
