"""The worked example's values in the API description: `python -m tests.vectors.openapi` writes
story.json.
"""

import json
from pathlib import Path
from typing import Any

from agentauth.openapi.example_values import ASKED_AT
from agentauth.protocol import merkle_proofs
from agentauth.protocol.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from agentauth.protocol.checkpoint_proofs import LogProof
from agentauth.protocol.encoding import b64_encode, b64u_encode
from agentauth.protocol.key_change import sign_key_change
from agentauth.protocol.log_hashes import entry_hash, field_commitment, leaf_hash, node_hash
from agentauth.protocol.signed_notes import format_note, parse_note, verifier_key

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


ORIGIN, LOG_KEY = "registry.example/v1/audit", local("audit key")
# The event's number in the example's log, and two sizes of that log.
LEAF_INDEX, SIZE_BEFORE, SIZE = 41, 40, 44


def event() -> dict[str, Any]:
    """The registration of the example's agent, as stored in the log."""
    name = {"commitment": field_commitment(example.NAME, seed("opening"))}
    return {
        "id": identifier("event"),
        "kind": "registry.agent.registered",
        "at": ASKED_AT,
        "actor": {"kind": "anonymous", "id": ""},
        "outcome": "success",
        "request_id": identifier("request"),
        "data": {"jkt": AGENT.public.thumbprint, "name": name},
        "agent_id": identifier("agent"),
    }


def subtree(height: int, index: int) -> bytes:
    """A subtree of a log with that event as number LEAF_INDEX, and all others made up."""
    if height:
        return node_hash(subtree(height - 1, 2 * index), subtree(height - 1, 2 * index + 1))
    return leaf_hash(
        entry_hash(event(), seed("salt")) if index == LEAF_INDEX else seed(f"entry {index}")
    )


def log() -> dict[str, Any]:
    """What that log publishes."""
    root = merkle_proofs.tree_root(SIZE, subtree)
    checkpoint = Checkpoint(ORIGIN, SIZE, root)
    seen = cosign_checkpoint(
        checkpoint, name="witness.example", signer=local("witness key"), at=NOW
    )
    signed = parse_note(sign_checkpoint(checkpoint, signer=LOG_KEY))
    note = format_note(signed.text, [*signed.signatures, seen])
    path = merkle_proofs.prove_inclusion(LEAF_INDEX, SIZE, subtree)
    return {
        "event": event() | {"salt": b64u_encode(seed("salt")), "leaf_index": LEAF_INDEX},
        "checkpoint": note,
        "inclusion": {
            "leaf_index": LEAF_INDEX,
            "tree_size": SIZE,
            "leaf_hash": b64_encode(subtree(0, LEAF_INDEX)),
            "audit_path": [b64_encode(each) for each in path],
            "root_hash": b64_encode(root),
        },
        "consistency": {
            "first": SIZE_BEFORE,
            "second": SIZE,
            "consistency_path": [
                b64_encode(each)
                for each in merkle_proofs.prove_consistency(SIZE_BEFORE, SIZE, subtree)
            ],
        },
        "bundle": LogProof(LEAF_INDEX, tuple(path), note).text,
    }


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
        "audit_vkey": verifier_key(ORIGIN, LOG_KEY.public),
        "token_keys": example.jwks(TOKEN_KEY),
        "receipt_keys": example.jwks(example.RECEIPT_KEY),
        "capabilities": example.CAPABILITIES,
        "envelope": example.ENVELOPE,
        "request": example.asked(),
        "question": example.question(),
        "answer": example.answer(),
        "opening": {"salt": b64u_encode(seed("opening")), "value": example.NAME},
        "log": log(),
    }


if __name__ == "__main__":
    STORY.write_text(json.dumps(story(), ensure_ascii=False, indent=1) + "\n", "utf-8")
