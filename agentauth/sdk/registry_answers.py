"""The registry's answers as small records, read leniently (unknown members are ignored)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self, TypeGuard

from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.jose import MAX_BYTES as MAX_JWS_BYTES

from .errors import RegistryError

# Characters. The longest text used from an answer is a token, which is ASCII.
MAX_MEMBER: Final = MAX_JWS_BYTES
_OK: Final = 200


@dataclass(frozen=True, slots=True)
class Agent:
    """A registered agent. While `unclaimed`, a human adopts it at `claim_url` with `claim_code`."""

    agent_id: str
    status: str
    expires_at: str | None = None
    claim_url: str | None = None
    claim_code: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """Read `POST /v1/agents`. Raises RegistryError."""
        return cls(
            agent_id=text(body, "agent_id"),
            status=text(body, "status"),
            expires_at=optional(body, "expires_at"),
            claim_url=optional(body, "claim_url"),
            claim_code=optional(body, "claim_code"),
        )


@dataclass(frozen=True, slots=True)
class Grant:
    """A grant's current state.

    `answer` is the registry's whole answer, with requested and granted terms. `approval_url` is
    where a human decides; the page asks for `claim_code` while the agent is unclaimed.
    """

    grant_id: str
    status: str
    service_provider: str
    approval_url: str | None = None
    claim_code: str | None = field(default=None, repr=False)
    deny_reason: str | None = None
    valid_until: str | None = None
    interval: int = 2
    answer: Mapping[str, object] = field(default_factory=dict, repr=False)

    @classmethod
    def of(
        cls,
        body: Mapping[str, object],
        *,
        service_provider: str = "",
        claim_code: str | None = None,
    ) -> Self:
        """Read a grant of `POST /v1/grants`, `GET /v1/grants` or `GET /v1/grants/{id}`.

        Raises RegistryError.
        """
        interval = body.get("interval")
        named = body.get("service_provider")
        if isinstance(named, Mapping):
            named = named.get("id")
        return cls(
            grant_id=text(body, "grant_id"),
            status=text(body, "status"),
            service_provider=named if isinstance(named, str) else service_provider,
            approval_url=optional(body, "approval_url"),
            claim_code=claim_code,
            deny_reason=optional(body, "deny_reason"),
            valid_until=optional(body, "valid_until"),
            interval=interval if isinstance(interval, int) and interval > 0 else 2,
            answer=body,
        )

    @property
    def narrowed(self) -> bool:
        """Did the human grant less than requested?"""
        return bool(self.answer.get("narrowed"))


@dataclass(frozen=True, slots=True)
class ServiceProvider:
    """A service provider: its audience, and what agents may ask for (such as `read:calendar`)."""

    id: str
    name: str
    audience: str
    allowed: tuple[str, ...] = ()

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """Read `GET /v1/service-providers/{id or slug}`. Raises RegistryError."""
        allowed = body.get("allowed")
        return cls(
            id=text(body, "id"),
            name=text(body, "name"),
            audience=text(body, "audience"),
            allowed=tuple(map(str, allowed)) if isinstance(allowed, list) else (),
        )


@dataclass(frozen=True, slots=True)
class Confirmation:
    """An answer on one transaction: `pending`, `confirmed`, `denied`, `consumed` or `expired`."""

    confirmation_id: str
    status: str
    approval_url: str | None = None

    @classmethod
    def of(cls, body: Mapping[str, object]) -> Self:
        """Read `GET /v1/confirmations/{id}`. Raises RegistryError."""
        return cls(
            text(body, "confirmation_id"), text(body, "status"), optional(body, "approval_url")
        )


def text(body: Mapping[str, object], name: str) -> str:
    """A required text member of at most `MAX_MEMBER` characters. Raises RegistryError."""
    value = body.get(name)
    if not _is_text(value):
        raise _missing(name)
    return value


def optional(body: Mapping[str, object], name: str) -> str | None:
    """An optional text member; anything but text of at most `MAX_MEMBER` characters counts as
    absent.
    """
    value = body.get(name)
    return value if _is_text(value) and value else None


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= MAX_MEMBER


def _missing(name: str) -> AgentAuthError:
    return RegistryError(f"The registry's answer has no usable {name}.", status=_OK)


def results_of(body: Mapping[str, object]) -> list[Mapping[str, object]]:
    """The rows of one page of a list. Raises RegistryError."""
    rows = body.get("results")
    if not isinstance(rows, list):
        raise _missing("results")
    return [row for row in rows if isinstance(row, dict)]
