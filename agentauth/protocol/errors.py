"""All errors of the protocol: each has a stable snake-case code. HTTP statuses are elsewhere."""

from typing import Any, ClassVar, Final

# Characters. A description may quote a text of 500 that a person wrote; in a client, it may be
# whatever a server sent.
MAX_MESSAGE: Final = 2_000


class AgentAuthError(Exception):
    """A refusal.

    `description` is one plain sentence a person can act on; it never contains a secret.
    `description` and `reason` are cut after `MAX_MESSAGE` characters. `reason` is the finer stable
    word for codes that have several; `fields` are further JSON members of the answer.
    """

    code: ClassVar[str] = "error"
    # True once its audit event was committed with the act; the HTTP layer then writes no second
    # one.
    recorded: bool = False

    def __init__(self, description: str = "", *, reason: str | None = None, **fields: Any) -> None:
        self.description = _shorten(description)
        self.reason = None if reason is None else _shorten(reason)
        self.fields = fields
        super().__init__(
            f"{self.code}{'/' + self.reason if self.reason else ''}: {self.description}"
        )


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"


class InvalidRequestError(AgentAuthError):
    code = "invalid_request"


class EncodingError(InvalidRequestError):
    """Bytes or text that are not in canonical form."""


class InvalidKeyError(InvalidRequestError):
    """A public key outside the policy of docs/protocol.md section 1."""


class InvalidSignatureError(AgentAuthError):
    code = "invalid_signature"


class InvalidTokenError(AgentAuthError):
    code = "invalid_token"


class InvalidProofError(AgentAuthError):
    code = "invalid_dpop_proof"


class ProofNonceRequiredError(AgentAuthError):
    code = "use_dpop_nonce"


class ManifestError(AgentAuthError):
    code = "invalid_manifest"


class GrantTooLargeError(AgentAuthError):
    code = "grant_too_large"


class InvalidReceiptError(AgentAuthError):
    code = "invalid_receipt"


class ChainError(AgentAuthError):
    code = "invalid_log_proof"


class NoteError(AgentAuthError):
    """A signed note, a checkpoint, or a text with one inside, that is not in canonical form."""

    code = "invalid_note"


class UntrustedNoteError(NoteError):
    """A well-formed note without a signature by a trusted key, or with one that does not verify."""

    code = "untrusted_note"


class InvalidClientError(AgentAuthError):
    code = "invalid_client"


class NotFoundError(AgentAuthError):
    """The same answer for a missing object and another owner's, so that ids cannot be probed."""

    code = "not_found"

    def __init__(
        self, description: str = "There is nothing here, or it is not yours.", **more: Any
    ) -> None:
        super().__init__(description, **more)


class NotYetLoggedError(AgentAuthError):
    """Not in the log, or its next checkpoint, yet; it will be in about `retry_after` seconds."""

    code = "not_yet_logged"


class PermissionDeniedError(AgentAuthError):
    code = "permission_denied"


class InvalidGrantError(AgentAuthError):
    code = "invalid_grant"


class InvalidStateError(AgentAuthError):
    code = "invalid_state"


class InvalidScopeError(AgentAuthError):
    """The request exceeds the manifest, or what the service provider allows."""

    code = "invalid_scope"


class AgentInactiveError(AgentAuthError):
    code = "agent_inactive"


class ManifestConflictError(AgentAuthError):
    code = "manifest_conflict"


class KeyInUseError(AgentAuthError):
    code = "key_in_use"


class InvalidEnrolmentCodeError(AgentAuthError):
    code = "invalid_enrolment_code"


class TooManyPendingGrantsError(AgentAuthError):
    code = "too_many_pending_grants"


class CooldownActiveError(AgentAuthError):
    code = "cooldown_active"


class SlowDownError(AgentAuthError):
    code = "slow_down"


class RateLimitedError(AgentAuthError):
    """Too many calls in a short time, whatever they asked; `retry_after` says when to retry."""

    code = "rate_limited"


class IdempotencyInProgressError(AgentAuthError):
    code = "idempotency_in_progress"


class IdempotencyMismatchError(AgentAuthError):
    code = "idempotency_mismatch"


class IdempotencyExpiredError(AgentAuthError):
    code = "idempotency_expired"


class GrantChangedError(AgentAuthError):
    code = "grant_changed"


class ExpiredError(AgentAuthError):
    code = "expired"


class InvalidAssertionError(AgentAuthError):
    code = "invalid_assertion"


class CsrfFailedError(AgentAuthError):
    code = "csrf_failed"


class ConfirmationRequiredError(AgentAuthError):
    """The person did not take the second explicit step."""

    code = "confirmation_required"


class TemporarilyUnavailableError(AgentAuthError):
    """A dependency is unavailable: never a wrong yes, never a 401."""

    code = "temporarily_unavailable"

    def __init__(
        self,
        description: str = "The service cannot answer right now. Try again shortly.",
        **more: Any,
    ) -> None:
        super().__init__(description, **more)
