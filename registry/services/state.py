"""What a token may do right now: one query over the token and everything it hangs on. Read at use, never copied."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

from django.db.models import QuerySet

from agentauth.protocol.errors import InvalidTokenError
from registry.models import Agent, Grant, Human, ServiceProvider, Token


@dataclass(frozen=True, slots=True)
class TokenState:
    """A token row with its grant, agent, human and service provider, as of one query."""

    token: Token
    grant: Grant
    agent: Agent
    human: Human | None
    service_provider: ServiceProvider

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now`, as the `reason` of docs/protocol.md section 8; None if it may.

        The order is the table's: what the token itself is, then its grant, its agent, its human. A suspended or
        revoked service provider cannot authenticate; should its state change during the call, its grants are
        inactive.
        """
        if self.token.revoked_at is not None or self.token.jkt != self.agent.jkt:
            return "revoked"
        if not self._grant_is_good(now):
            return "grant_inactive"
        if self.agent.status != Agent.Status.ACTIVE or self.agent.expires_at <= now:
            return "agent_inactive"
        if self.human is None or not self.human.is_active:
            return "human_inactive"
        return None

    def _grant_is_good(self, now: datetime) -> bool:
        grant = self.grant
        return (
            grant.status == Grant.Status.APPROVED
            and grant.version == self.token.grant_version
            and grant.valid_until is not None
            and grant.valid_until > now
            and self.service_provider.is_active
        )


def token_state(jti: str) -> TokenState:
    """The state of the token with this `jti`, whatever it is, in one query.

    Raises InvalidTokenError(reason="unknown") where no such token was ever issued here.
    """
    token = _tokens().filter(jti=jti).first()
    if token is None:
        raise InvalidTokenError("This token was not issued here.", reason="unknown")
    return _state(token)


def token_states(jtis: Collection[str]) -> dict[str, TokenState]:
    """The same of many tokens in one query, by `jti`; one that was never issued here is left out.

    Made to be kept in great numbers: the long texts of which no decision asks are left where they are (_UNREAD).
    """
    return {token.jti: _state(token) for token in _tokens().defer(*_UNREAD).filter(jti__in=jtis)}


# The manifest alone may be longer than all the rest.
_UNREAD = (
    "claims",
    *(f"grant__{name}" for name in ("requested_capabilities", "requested_envelope", "request_digest")),
    *(f"grant__{name}" for name in ("reason", "deny_reason")),
    *(f"grant__agent__{name}" for name in ("manifest", "public_jwk", "capabilities", "description")),
    "grant__service_provider__allowed",
)


def _tokens() -> QuerySet[Token]:
    return Token.objects.select_related("grant__agent__human", "grant__service_provider")


def _state(token: Token) -> TokenState:
    grant = token.grant
    return TokenState(
        token=token,
        grant=grant,
        agent=grant.agent,
        human=grant.agent.human,
        service_provider=grant.service_provider,
    )
