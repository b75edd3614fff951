"""What only a client can raise, and how a registry's error answer becomes an exception."""

from collections.abc import Mapping
from typing import Any

from agentauth.protocol import errors as protocol_errors
from agentauth.protocol.errors import AgentAuthError

from .nonces import read_nonce


class AddressError(AgentAuthError):
    """An address we do not speak to: not https (http is for localhost and 127.0.0.1 alone), or not a plain origin."""

    code = "invalid_address"


class AudienceError(AgentAuthError):
    """The URL is not the service provider's: a proof for it would be a proof for a stranger."""

    code = "outside_audience"


class KeyFileError(AgentAuthError):
    """The key file is unreadable, open to others, or belongs to another registry."""

    code = "key_file"


class WitnessStateError(AgentAuthError):
    """A witness's files do not belong together, or cannot be used: beginning anew would cosign a rewritten log."""

    code = "witness_state"


class NoGrantError(AgentAuthError):
    """No grant at this service provider may be used for the call; the text says what is missing and how to ask.

    `reason` is `no_capability`, `constraint` (the field `violations` names the limits), the state of the grant
    that ended or is suspended, or None where nothing was asked.
    """

    code = "no_grant"


class AmbiguousGrantError(AgentAuthError):
    """Several grants differ in what they cover, and the call does not say what it does: pass `action`."""

    code = "ambiguous_grant"


class GrantPendingError(AgentAuthError):
    """A human has yet to decide, or to sign again what a change suspended. Show them `approval_url`, and `claim_code` where there is one."""

    code = "grant_pending"

    def __init__(self, description: str, *, grant_id: str, approval_url: str, claim_code: str | None) -> None:
        super().__init__(description, grant_id=grant_id, approval_url=approval_url, claim_code=claim_code)
        self.grant_id = grant_id
        self.approval_url = approval_url
        self.claim_code = claim_code


class AlreadyProcessedError(AgentAuthError):
    """This operation was allowed before, under the same Idempotency-Key: acting again would do it twice."""

    code = "already_processed"


class RegistryError(AgentAuthError):
    """An answer of the registry that this version has no class for; `status` is the HTTP status."""

    code = "registry_error"

    def __init__(
        self, description: str, *, status: int, reason: str | None = None, error: str = "", **fields: Any
    ) -> None:
        super().__init__(description, reason=reason or error or None, **fields)
        self.status = status
        self.error = error


class RefusedError(AgentAuthError):
    """Verify said no. `error` and `reason` are the stable words of docs/protocol.md section 8."""

    code = "refused"

    def __init__(self, error: str, reason: str | None, fields: Mapping[str, object]) -> None:
        super().__init__(f"The registry refused the call: {error}.", reason=reason, **fields)
        self.error = error

    @property
    def retry_after(self) -> int | None:
        """Seconds until time alone may heal it; None where it will not."""
        value = self.fields.get("retry_after")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def nonce(self) -> str | None:
        """The nonce the agent must put into its next proof, where that is what was missing."""
        return read_nonce(self.fields.get("nonce"))


_BY_CODE = {
    error.code: error
    for error in AgentAuthError.__subclasses__()
    # Only the registry's own family: a client-side class must not be raised because of what a server says.
    if error.__module__ == protocol_errors.__name__
}


def error_from(status: int, body: Mapping[str, object]) -> AgentAuthError:
    """The exception for an error answer `{"error","error_description","reason"?,…}`; unknown codes are RegistryError."""
    code = str(body.get("error", ""))
    description = str(body.get("error_description") or f"The registry answered with status {status}.")
    reason = body.get("reason")
    fields: dict[str, Any] = {
        name: value for name, value in body.items() if name not in {"error", "error_description", "reason"}
    }
    # A member named like a parameter of ours would be taken for it.
    for name in ("description", "status", "self"):
        fields.pop(name, None)
    kind = _BY_CODE.get(code)
    if kind is not None:
        return kind(description, reason=reason if isinstance(reason, str) else None, **fields)
    return RegistryError(
        description, status=status, reason=reason if isinstance(reason, str) else None, error=code, **fields
    )
