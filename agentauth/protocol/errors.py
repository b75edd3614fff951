"""The one family of refusals: each is a class with a stable snake-case code. HTTP statuses are not here."""

from typing import Any, ClassVar, Final

# Characters. A description may quote a text of 500 that a person wrote; a client's may be all a server chose to send.
MAX_MESSAGE: Final = 2_000


class AgentAuthError(Exception):
    """A refusal. `description` is one plain sentence a person can act on and never holds a secret.

    It is cut after `MAX_MESSAGE` characters, and so is `reason`. `reason` is the finer stable word where a code has several; `fields` are further JSON members of the answer.
    """

    code: ClassVar[str] = "error"
    # True once its audit event is committed with what was done; the edge then writes no second one.
    recorded: bool = False

    def __init__(self, description: str = "", *, reason: str | None = None, **fields: Any) -> None:
        self.description = _cut(description)
        self.reason = None if reason is None else _cut(reason)
        self.fields = fields
        super().__init__(f"{self.code}{'/' + self.reason if self.reason else ''}: {self.description}")


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else text[:MAX_MESSAGE] + "…"


class InvalidRequestError(AgentAuthError):
    code = "invalid_request"


class EncodingError(InvalidRequestError):
    """Bytes that are not in the one form we accept."""


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
    """A signed note, a checkpoint, or a text that carries one, that is not in its one form."""

    code = "invalid_note"


class UntrustedNoteError(NoteError):
    """A well-formed note that no trusted key signed, or with a signature of a trusted key that does not verify."""

    code = "untrusted_note"


class InvalidClientError(AgentAuthError):
    code = "invalid_client"


class NotFoundError(AgentAuthError):
    """One answer for what does not exist and for what is another's, so that no id can be tried."""

    code = "not_found"

    def __init__(self, description: str = "There is nothing here, or it is not yours.", **more: Any) -> None:
        super().__init__(description, **more)


class NotYetLoggedError(AgentAuthError):
    """It will be in the log, or in its next checkpoint, in about `retry_after` seconds: no refusal, only too early."""

    code = "not_yet_logged"


class PermissionDeniedError(AgentAuthError):
    code = "permission_denied"


class InvalidGrantError(AgentAuthError):
    code = "invalid_grant"


class InvalidStateError(AgentAuthError):
    code = "invalid_state"


class InvalidScopeError(AgentAuthError):
    """Asked beyond the manifest, or beyond what the service provider allows."""

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
    """Too many calls in a short time, whatever they asked; `retry_after` says when to go on."""

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
    """The second explicit step was not taken."""

    code = "confirmation_required"


class TemporarilyUnavailableError(AgentAuthError):
    """A dependency is down: never a wrong yes, never a 401."""

    code = "temporarily_unavailable"

    def __init__(
        self, description: str = "The service cannot answer right now. Try again shortly.", **more: Any
    ) -> None:
        super().__init__(description, **more)
