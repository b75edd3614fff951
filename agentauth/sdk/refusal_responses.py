"""A refusal as a service provider's HTTP answer to an agent: status, headers and a JSON body, for
any framework.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from agentauth.protocol.errors import (
    AgentAuthError,
    IdempotencyMismatchError,
    InvalidProofError,
    InvalidRequestError,
    InvalidTokenError,
    TemporarilyUnavailableError,
)

from .errors import AlreadyProcessedError, RefusedError

ALGORITHMS: Final = "EdDSA Ed25519 ES256"
MAX_BODY_BYTES: Final = 1024
_UNAUTHORIZED: Final = 401
_REFUSED: Final = {
    "invalid_token": 401,
    "invalid_dpop_proof": 401,
    "use_dpop_nonce": 401,
    "insufficient_scope": 403,
    "outside_time_window": 403,
    "step_up_required": 403,
    "envelope_exceeded": 429,
}
# An error code that this version does not know is still a no.
_REFUSED_OTHERWISE: Final = 403
_RAISED: Final[tuple[tuple[type[AgentAuthError], int], ...]] = (
    (InvalidTokenError, 401),
    (InvalidProofError, 401),
    (InvalidRequestError, 400),
    (IdempotencyMismatchError, 409),
    (AlreadyProcessedError, 409),
)
_SENTENCES: Final = {
    "malformed": "The access token or the proof could not be read.",
    "unknown": "This access token is not known here.",
    "expired": "The access token has expired. Ask for a new one.",
    "not_yet_valid": "The access token is not valid yet. Check the clock.",
    "revoked": "The access token was revoked.",
    "grant_inactive": (
        "The grant behind this token is no longer active, or it changed. Ask for a new token."
    ),
    "agent_inactive": "The agent is suspended, revoked or has expired.",
    "human_inactive": "The human behind this agent is not active.",
    "binding": "The proof was not made with the key this token is bound to.",
    "signature": "The proof's signature does not verify.",
    "method": "The proof was made for another method.",
    "url": "The proof was made for another URL.",
    "iat": "The proof is too old, or from the future. Check the clock.",
    "ath": "The proof was made for another access token.",
    "replayed": "This proof was used before. Make a new one for every request.",
    "no_capability": "The grant does not cover this.",
    "constraint": "The grant covers this only within limits, and they are exceeded.",
    "rate": "Too many requests for this grant.",
    "budget": "This would exceed the grant's budget.",
    "max_uses": "The grant has been used as often as it may be.",
    "confirm_above": "A human must confirm this one transaction first.",
    "confirmation_denied": "A human denied this transaction.",
    "human_offline": "The grant works only while the human is present.",
}
_BY_ERROR: Final = {
    "use_dpop_nonce": "Put the nonce of this answer's DPoP-Nonce header into the proof.",
    "outside_time_window": "The grant does not allow this at this time.",
}
# The registry's codes are short words. Any other text is not a code and could fill the answer.
_WORD: Final = re.compile(r"[a-z0-9_]{1,64}")
_NO_SENTENCE: Final = "This is not allowed."
# Seconds. A longer wait is an error, and not every client can parse it.
_LONGEST_WAIT: Final = 999_999_999
_SHOWN: Final = ("retry_after", "confirmation_id", "approval_url", "violations")


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """The answer to send: never cached, at most 1 kB."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def answer_for(error: AgentAuthError) -> HttpAnswer:
    """The HTTP answer for a refusal; what is not the agent's fault is 503, never 401 or 200."""
    if isinstance(error, RefusedError):
        return _refused(error)
    for kind, status in _RAISED:
        if isinstance(error, kind):
            return _answer(status, error.code, error.description, {"reason": error.reason})
    after = (
        error.fields.get("retry_after") if isinstance(error, TemporarilyUnavailableError) else None
    )
    seconds = after if type(after) is int else 1
    return _answer(
        503,
        "temporarily_unavailable",
        "The request could not be checked. Try again shortly.",
        {},
        seconds,
    )


def _refused(error: RefusedError) -> HttpAnswer:
    status = _REFUSED.get(error.error, _REFUSED_OTHERWISE)
    sentence = _BY_ERROR.get(error.error) or _SENTENCES.get(error.reason or "", _NO_SENTENCE)
    members = {"reason": error.reason} | {name: error.fields.get(name) for name in _SHOWN}
    answer = _answer(status, error.error, sentence, members, error.retry_after)
    if error.nonce is not None:
        return HttpAnswer(answer.status, {**answer.headers, "DPoP-Nonce": error.nonce}, answer.body)
    return answer


def _answer(
    status: int,
    code: str,
    description: str,
    members: Mapping[str, object],
    retry_after: int | None = None,
) -> HttpAnswer:
    """The answer. If too long, without its further members, then without `description`."""
    code = code if _is_word(code) else RefusedError.code
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    if status == _UNAUTHORIZED:
        headers["WWW-Authenticate"] = f'DPoP error="{code}", algs="{ALGORITHMS}"'
    if retry_after is not None and 0 <= retry_after <= _LONGEST_WAIT:
        headers["Retry-After"] = str(retry_after)
    reason = {"reason": members["reason"]} if _is_word(members.get("reason")) else {}
    shown = reason | {name: members[name] for name in _SHOWN if members.get(name) is not None}
    # Long limits (a list of 64 payees) are dropped, not cut: half a list would be wrong.
    bodies = ((description, shown), (description, reason), (_NO_SENTENCE, reason))
    contents = [
        json.dumps({"error": code, "error_description": sentence} | more).encode()
        for sentence, more in bodies
    ]
    content = next((each for each in contents if len(each) <= MAX_BODY_BYTES), contents[-1])
    return HttpAnswer(status, headers, content)


def _is_word(value: object) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None
