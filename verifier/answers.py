"""The bodies of verify's answers: small, without secrets, and identical for identical refusals."""

import json
import uuid
from collections.abc import Mapping
from typing import Any, Protocol

from django.conf import settings

from agentauth.protocol.capability import Capability
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.usage_counters import Limits
from audit.new_ids import id_text
from verifier.stores import Permit

# A refusal stays below 1 kB (docs/protocol.md section 0), whatever limits the grant names.
_MAX_REFUSAL = 1_000

# One sentence per error and reason. It depends on nothing else: a forged token and a token of
# another service provider get the same bytes, so that the caller cannot tell them apart.
_SENTENCES = {
    ("invalid_token", "malformed"): "The token is malformed.",
    ("invalid_token", "unknown"): "The token is not known here.",
    ("invalid_token", "expired"): "The token has expired; the agent should get a new one.",
    ("invalid_token", "not_yet_valid"): "The token is not valid yet; check the clocks.",
    ("invalid_token", "revoked"): "The token was revoked.",
    (
        "invalid_token",
        "grant_inactive",
    ): "The grant has ended, is suspended or has changed since the token was issued.",
    ("invalid_token", "agent_inactive"): "The agent is not active.",
    ("invalid_token", "human_inactive"): "The human behind the agent is not active.",
    ("invalid_token", "binding"): "The proof was made with a key other than the token's.",
    ("invalid_dpop_proof", "malformed"): "The proof is missing or malformed.",
    ("invalid_dpop_proof", "signature"): "The proof's signature does not verify.",
    ("invalid_dpop_proof", "method"): "The proof was made for another method.",
    (
        "invalid_dpop_proof",
        "url",
    ): "The proof was made for another URL, or the URL lies outside your audience.",
    (
        "invalid_dpop_proof",
        "iat",
    ): "The proof was made too long ago or in the future; the agent should make a new one.",
    ("invalid_dpop_proof", "ath"): "The proof was made for another token.",
    (
        "invalid_dpop_proof",
        "replayed",
    ): "The proof was used before; the agent should make a new one for each call.",
    (
        "use_dpop_nonce",
        None,
    ): "The proof must carry the nonce of this answer; the agent should make a new one.",
    ("insufficient_scope", "no_capability"): "The grant has no capability for this action.",
    ("insufficient_scope", "constraint"): "The action breaks a limit of the capability.",
    ("envelope_exceeded", "rate"): "Too many requests; try again later.",
    ("envelope_exceeded", "budget"): "The budget does not cover this.",
    ("envelope_exceeded", "max_uses"): "The grant has been used as often as it may be.",
    ("outside_time_window", None): "The grant may not be used at this time.",
    ("step_up_required", "confirm_above"): "A human must confirm this transaction first.",
    ("step_up_required", "confirmation_denied"): "The human said no to this transaction.",
    ("step_up_required", "human_offline"): "The human must be present for this.",
    ("idempotency_mismatch", None): "This idempotency_key was used for another action.",
}


def sentence(refuse: Refuse) -> str:
    """The refusal as a sentence for people."""
    return _SENTENCES[refuse.error, refuse.reason]


def refusal_body(refuse: Refuse) -> dict[str, Any]:
    """The body of `valid: false` (docs/protocol.md section 8)."""
    body: dict[str, Any] = {"valid": False, "error": refuse.error}
    if refuse.reason is not None:
        body["reason"] = refuse.reason
    body["error_description"] = sentence(refuse)
    if refuse.retry_after is not None:
        body["retry_after"] = refuse.retry_after
    if refuse.confirmation_id is not None:
        body["confirmation_id"] = str(refuse.confirmation_id)
        body["approval_url"] = f"{settings.PUBLIC_URL}/confirmations/{refuse.confirmation_id}/"
    if refuse.reason == "human_offline":
        body["approval_url"] = f"{settings.PUBLIC_URL}/approvals/"
    if refuse.nonce is not None:
        body["nonce"] = refuse.nonce
    if refuse.violations:
        _add_violations(body, refuse)
    return body


def body_of(outcome: Permit | Refuse) -> Mapping[str, Any]:
    """The body for this outcome."""
    return outcome.answer if isinstance(outcome, Permit) else refusal_body(outcome)


class Named(Protocol):
    """What an answer says about the agent."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def name(self) -> str: ...
    @property
    def model_origin(self) -> str: ...


def allowed_body(
    capability: Capability | None,
    limits: Limits,
    *,
    decision_id: str,
    agent: Named,
    claims: TokenClaims,
    now_seconds: int,
) -> dict[str, Any]:
    """The body of `valid: true`; `capability` is None if the request names no action."""
    body: dict[str, Any] = {
        "valid": True,
        "decision_id": decision_id,
        "agent": {"id": id_text(agent.id), "name": agent.name, "model_origin": agent.model_origin},
        "subject": claims.subject,
        "grant_id": claims.grant_id,
        "scope": claims.scope,
        "limits": limits.to_json(),
        "expires_in": claims.expires_at - now_seconds,
    }
    if capability is not None:
        body["capability"] = capability.to_json()
    return body


def allowed_again(
    body: Mapping[str, Any], limits: Limits, *, decision_id: str, expires_in: int
) -> dict[str, Any]:
    """`allowed_body` for a further call with the token and action that `body` was made for."""
    return {
        **body,
        "decision_id": decision_id,
        "limits": limits.to_json(),
        "expires_in": expires_in,
    }


def repeated_body(
    answer: Mapping[str, Any], *, claims: TokenClaims, now_seconds: int
) -> dict[str, Any]:
    """The earlier answer, marked as repeated. Only `expires_in` is new: it is this token's."""
    return {**answer, "expires_in": claims.expires_at - now_seconds, "repeated": True}


def _add_violations(body: dict[str, Any], refuse: Refuse) -> None:
    """Add each violation if it fits, else without its limit if that fits, else not at all."""
    body["violations"] = shown = []
    for violation in refuse.violations:
        full = violation.to_json()
        brief = {name: value for name, value in full.items() if name != "limit"}
        for form in (full, brief):
            shown.append(form)
            if len(json.dumps(body).encode()) <= _MAX_REFUSAL:
                break
            shown.pop()
