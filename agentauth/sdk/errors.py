"""Errors that only a client raises, and the conversion of error answers to exceptions."""

from collections.abc import Mapping
from typing import Any

from agentauth.protocol import errors as protocol_errors
from agentauth.protocol.errors import AgentAuthError, InvalidProofError

from .server_nonces import read_nonce


class AddressError(AgentAuthError):
    """An address we do not connect to: not https (http is for localhost and 127.0.0.1 alone), or
    not a plain origin.
    """

    code = "invalid_address"


class AudienceError(AgentAuthError):
    """The URL is outside the service provider's audience: another server could use the proof."""

    code = "outside_audience"


class KeyFileError(AgentAuthError):
    """The key file, or another key store, is unusable, readable by other users, or of another
    registry.
    """

    code = "key_file"


class WitnessStateError(AgentAuthError):
    """A witness's files do not belong together or are unusable: starting empty would cosign a
    rewritten log.
    """

    code = "witness_state"


class ClockError(InvalidProofError):
    """A proof was refused because this host's clock is off; `fields["offset"]` is by how many
    seconds (negative: behind).
    """


class NoGrantError(AgentAuthError):
    """No grant at this service provider can be used for the call; the text says what is missing and
    how to ask.

    `reason` is `no_capability`, `constraint` (the field `violations` names the limits), the state
    of the grant that ended or is suspended, or None if nothing was requested yet.
    """

    code = "no_grant"


class AmbiguousGrantError(AgentAuthError):
    """Several grants differ in what they cover, and the call names no act: pass `action`."""

    code = "ambiguous_grant"


class GrantPendingError(AgentAuthError):
    """A human must decide, or sign again after a change.

    Show them `approval_url` and, if set, `claim_code`.
    """

    code = "grant_pending"

    def __init__(
        self, description: str, *, grant_id: str, approval_url: str, claim_code: str | None
    ) -> None:
        super().__init__(
            description, grant_id=grant_id, approval_url=approval_url, claim_code=claim_code
        )
        self.grant_id = grant_id
        self.approval_url = approval_url
        self.claim_code = claim_code


class AlreadyProcessedError(AgentAuthError):
    """This operation was allowed before under the same Idempotency-Key: acting again would do it
    twice.
    """

    code = "already_processed"


class RegistryError(AgentAuthError):
    """An error answer that this version has no class for; `status` is the HTTP status."""

    code = "registry_error"

    def __init__(
        self,
        description: str,
        *,
        status: int,
        reason: str | None = None,
        error: str = "",
        **fields: Any,
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
        """Seconds after which a retry may succeed; None if waiting does not help."""
        value = self.fields.get("retry_after")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def nonce(self) -> str | None:
        """The nonce the agent's next proof must have, if it lacked one."""
        return read_nonce(self.fields.get("nonce"))


_BY_CODE = {
    error.code: error
    for error in AgentAuthError.__subclasses__()
    # Only the protocol's classes: a server must not make us raise a client-side error.
    if error.__module__ == protocol_errors.__name__
}


def error_from(status: int, body: Mapping[str, object]) -> AgentAuthError:
    """The exception for an error answer `{"error","error_description","reason"?,…}`; unknown codes
    become RegistryError.
    """
    code = str(body.get("error", ""))
    description = str(
        body.get("error_description") or f"The registry answered with status {status}."
    )
    reason = body.get("reason")
    fields: dict[str, Any] = {
        name: value
        for name, value in body.items()
        if name not in {"error", "error_description", "reason"}
    }
    # A member with the name of a constructor parameter would be passed as that parameter.
    for name in ("description", "status", "self"):
        fields.pop(name, None)
    kind = _BY_CODE.get(code)
    if kind is not None:
        return kind(description, reason=reason if isinstance(reason, str) else None, **fields)
    return RegistryError(
        description,
        status=status,
        reason=reason if isinstance(reason, str) else None,
        error=code,
        **fields,
    )
