"""Agents: register, read oneself, replace manifest or key, revoke oneself."""

from collections.abc import Mapping
from typing import Any, Final

from agentauth.openapi.example_values import ASKED_AT, CLAIM_PAGE, ID, MANIFEST_ENDS, STORY
from agentauth.openapi.operation_types import Body, Operation, SuccessResponse, see_section

_REGISTRATION: Final[dict[str, Any]] = {
    "agent_id": ID["agent"],
    "claim_code": "7K3MQ9TD",
    "claim_url": CLAIM_PAGE,
    "expires_at": MANIFEST_ENDS,
    "jkt": STORY["jkt"],
    "status": "unclaimed",
}
_OWNED: Final = {
    name: value
    for name, value in _REGISTRATION.items()
    if name not in {"claim_code", "claim_url"}
} | {"status": "active"}  # fmt: skip
_AGENT: Final = {
    "agent_id": ID["agent"],
    "status": "active",
    "jkt": STORY["jkt"],
    "name": "Research Assistant",
    "description": "Finds papers and pays for them.",
    "model_origin": "models.example",
    "capabilities": STORY["capabilities"],
    "created_at": ASKED_AT,
    "expires_at": MANIFEST_ENDS,
}
OPERATIONS: Final[Mapping[str, Operation]] = {
    "POST /v1/agents": Operation(
        "register_agent",
        "Register an agent by its key",
        answers={
            201: SuccessResponse("A new agent.", "Registration", _REGISTRATION),
            200: SuccessResponse(
                "An agent that is registered already: same key, same manifest.",
                "Registration",
                _OWNED,
            ),
        },
        description=(
            "The proof must be made with the manifest's key. With an enrolment code the agent is "
            "active at once and belongs to the human. Without one, a human opens `claim_url` and "
            f"types the `claim_code` that the agent displays. {see_section(5)}"
        ),
        body=Body("RegisterRequest", {"manifest": STORY["manifest"]}),
        errors=[
            "invalid_manifest",
            "invalid_enrolment_code",
            "invalid_client",
            "manifest_conflict",
            "key_in_use",
            "too_many_pending_grants",
        ],
        keyed=True,
        callers=["proof"],
    ),
    "GET /v1/agents/me": Operation(
        "own_agent",
        "The agent that makes the call",
        answers={200: SuccessResponse("", "Agent", _AGENT)},
    ),
    "DELETE /v1/agents/me": Operation(
        "end_own_agent",
        "Revoke this agent permanently",
        answers={204: SuccessResponse("Revoked, with its grants and tokens.")},
        keyed=True,
    ),
    "POST /v1/agents/me/manifest": Operation(
        "replace_manifest",
        "Renew or change the manifest",
        answers={200: SuccessResponse("The agent after the change.", "Agent", _AGENT)},
        description=(
            "Signed with the current key, with a later `iat`. Grants it no longer covers are "
            "suspended until a human signs again. An expired agent may renew."
        ),
        body=Body("ManifestRequest", {"manifest": STORY["manifest"]}),
        errors=["invalid_manifest", "agent_inactive", "invalid_state"],
        keyed=True,
    ),
    "POST /v1/agents/me/key": Operation(
        "replace_key",
        "Change to a new key",
        answers={
            200: SuccessResponse(
                "The agent after the change.", "Agent", _AGENT | {"jkt": STORY["new_jkt"]}
            )
        },
        description=(
            "The proof is made with the current key. `new_key` is signed with the new one: a JWS "
            "with `typ: agent-key+jwt`, its `jwk` and the claims `aud`, `iat`, `jti`, `agent_id`, "
            "`old_jkt`. Tokens bound to the old key end, and that key can never be used again."
        ),
        body=Body("KeyRequest", {"new_key": STORY["new_key"]}),
        errors=["agent_inactive", "key_in_use"],
        keyed=True,
    ),
}
