"""What a token may do right now: one query over the token and everything it hangs on. Read at use, never copied."""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import Model

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import TokenClaims
from audit.identifiers import id_text
from audit.statements import Question, Statement, all_but
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.proved_grants import DISABLED_KEYS, PROVED, SEAL_ENDED, terms_of

# When a token may not act any more, and why; None: it may not whatever the time.
Ends = tuple[tuple[datetime | None, str], ...]


@dataclass(frozen=True, slots=True)
class TokenState:
    """A token row with its grant, agent, human and service provider, as of one query."""

    token: Token
    grant: Grant
    agent: Agent
    human: Human | None
    service_provider: ServiceProvider
    # The key of the receipt that covers the grant's terms (`registry.services.proved_grants`); None where none does.
    receipt_kid: str | None

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now`, as the `reason` of docs/protocol.md section 8; None if it may."""
        return refusal_at(self.ends, now)

    @property
    def ends(self) -> Ends:
        """What `refusal_at` asks, up to the first that is over whatever the time.

        The order is the table's: what the token itself is, then its grant, its agent, its human. A suspended or
        revoked service provider cannot authenticate; should its state change during the call, its grants are
        inactive.
        """
        if self.token.revoked_at is not None or self.token.jkt != self.agent.jkt:
            return ((None, "revoked"),)
        if not self._grant_is_good():
            return ((None, "grant_inactive"),)
        grant = (self.grant.valid_until, "grant_inactive")
        if self.agent.status != Agent.Status.ACTIVE:
            return grant, (None, "agent_inactive")
        agent = (self.agent.expires_at, "agent_inactive")
        if self.human is None or not self.human.is_active:
            return grant, agent, (None, "human_inactive")
        return grant, agent

    def _grant_is_good(self) -> bool:
        grant = self.grant
        return (
            grant.status == Grant.Status.APPROVED
            and self.receipt_kid is not None
            and grant.version == self.token.grant_version
            and grant.valid_until is not None
            and self.service_provider.is_active
        )

    def is_of(self, claims: TokenClaims, service_provider_id: uuid.UUID) -> bool:
        """Whether these are the rows of a token with these claims at this service provider.

        The signature already binds them. A mismatch would mean that rows were exchanged: then nothing is known.
        """
        return (
            id_text(self.grant.id) == claims.grant_id
            and self.token.grant_version == claims.grant_version
            and self.service_provider.id == service_provider_id
        )


def refusal_at(ends: Ends, now: datetime) -> str | None:
    """The first reason whose time has come."""
    for at, reason in ends:
        if at is None or at <= now:
            return reason
    return None


def token_state(jti: str) -> TokenState:
    """The state of the token with this `jti`, whatever it is, in one query.

    Raises InvalidTokenError(reason="unknown") where no such token was ever issued here.
    """
    for state in _states(_OF_ONE.ask(jti)):
        return state
    raise InvalidTokenError("This token was not issued here.", reason="unknown")


def token_states(jtis: Collection[str]) -> dict[str, TokenState]:
    """The same of many tokens in one query, by `jti`; one that was never issued here is left out.

    Made to be kept in great numbers: the claims, too, are left where they are.
    """
    return read_states(ask_states(jtis).answer())


def ask_states(jtis: Collection[str]) -> Statement:
    """What `token_states` asks; `read_states` makes the states of its rows."""
    return _OF_MANY.of(list(jtis))


def read_states(rows: Sequence[tuple[Any, ...]]) -> dict[str, TokenState]:
    """By `jti`. May ask for receipts that are not proved yet. Raises django.db errors."""
    return {state.token.jti: state for state in _states(rows)}


# Of which no decision asks; the manifest alone may be longer than all the rest.
_UNREAD: Final[Mapping[type[Model], Collection[str]]] = {
    Grant: ("requested_capabilities", "requested_envelope", "request_digest", "reason", "deny_reason"),
    Agent: ("manifest", "public_jwk", "capabilities", "description"),
    ServiceProvider: ("allowed",),
}
_ROWS: Final = (
    f"SELECT {{}}, {SEAL_ENDED}, {DISABLED_KEYS} FROM registry_token t JOIN registry_grant g ON g.id = t.grant_id"  # noqa: S608 — our own text
    " JOIN registry_agent a ON a.id = g.agent_id LEFT JOIN registry_human h ON h.id = a.human_id"
    " JOIN registry_serviceprovider s ON s.id = g.service_provider_id"
)
_BEHIND: Final = {
    "g": all_but(Grant, *_UNREAD[Grant]),
    "a": all_but(Agent, *_UNREAD[Agent]),
    "h": all_but(Human),
    "s": all_but(ServiceProvider, *_UNREAD[ServiceProvider]),
}
_OF_ONE: Final = Question(f"{_ROWS} WHERE t.jti = %s", t=all_but(Token), **_BEHIND)
_OF_MANY: Final = Question(f"{_ROWS} WHERE t.jti = ANY(%s)", t=all_but(Token, "claims"), **_BEHIND)


def _states(rows: Sequence[tuple[Any, ...]]) -> list[TokenState]:
    terms = [
        terms_of(grant, agent, service_provider, seal_ended=ended)
        for _, grant, agent, _, service_provider, ended, _ in rows
    ]
    # One statement read them all, and so counted once.
    proofs = PROVED.proofs({each for each in terms if each}, disabled_keys=rows[0][-1]) if rows else {}
    return [
        _state(read, proofs[each].kid if each in proofs else None)
        for (*read, _, _), each in zip(rows, terms, strict=True)
    ]


def _state(rows: Sequence[Any], receipt_kid: str | None) -> TokenState:
    token, grant, agent, human, service_provider = rows
    token.grant, grant.agent, grant.service_provider, agent.human = grant, agent, service_provider, human
    return TokenState(token, grant, agent, human, service_provider, receipt_kid)
