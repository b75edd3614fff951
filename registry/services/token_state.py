"""What a token may do now: one query over the token and every row behind it.

Verifier processes cache the result (`verifier.services.cached_token`).
"""

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from django.db.models import Model

from agentauth.protocol.errors import InvalidTokenError
from agentauth.protocol.token import TokenClaims
from audit.db.prebuilt_sql import SelectQuery, Statement, all_but
from audit.new_ids import id_text
from registry.models import Agent, Grant, Human, ServiceProvider, Token
from registry.services.approval_receipt_check import DISABLED_KEYS, PROVED, SEAL_ENDED, terms_of

# Pairs (time, reason): the token is refused for `reason` from `time` on. None: it is refused now.
Ends = tuple[tuple[datetime | None, str], ...]


@dataclass(frozen=True, slots=True)
class TokenState:
    """A token row with its grant, agent, human and service provider, as of one query."""

    token: Token
    grant: Grant
    agent: Agent
    # None if the agent is unclaimed, or its row's seal is invalid.
    human: Human | None
    service_provider: ServiceProvider
    # Key of the receipt that covers the grant's terms (`approval_receipt_check`), or None.
    receipt_kid: str | None

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now` (docs/protocol.md section 8, `reason`), or None."""
        return refusal_at(self.ends, now)

    @property
    def ends(self) -> Ends:
        """When and why the token stops working, up to the first reason that holds already.

        The order is that of docs/protocol.md section 8: the token itself, then its grant, agent and
        human. A suspended or revoked service provider cannot authenticate; if its state changes
        during the call, its grants are inactive.
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

        The signature already binds the claims, so a mismatch means that someone exchanged rows:
        then the token's state is unknown.
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
    """The state of the token with this `jti`, in one query.

    Raises InvalidTokenError(reason="unknown") if no such token was ever issued here.
    """
    states = _states(_OF_ONE.ask(jti))
    if not states:
        raise InvalidTokenError("This token was not issued here.", reason="unknown")
    return states[0]


def token_states(jtis: Collection[str]) -> dict[str, TokenState]:
    """`token_state` of many tokens in one query, by `jti`; those never issued here are left out.

    The claims of the tokens are not read, because callers keep many states in memory.
    """
    return read_states(ask_states(jtis).answer())


def ask_states(jtis: Collection[str]) -> Statement:
    """The statement behind `token_states`; `read_states` turns its rows into states."""
    return _OF_MANY.of(list(jtis))


def read_states(rows: Sequence[tuple[Any, ...]]) -> dict[str, TokenState]:
    """The states by `jti`. May query receipts that are not cached yet. Raises django.db errors."""
    return {state.token.jti: state for state in _states(rows)}


# Columns that no decision needs; the manifest alone may be longer than all others together.
_UNREAD: Final[Mapping[type[Model], Collection[str]]] = {
    Grant: (
        "requested_capabilities",
        "requested_envelope",
        "request_digest",
        "reason",
        "deny_reason",
    ),
    Agent: ("manifest", "public_jwk", "capabilities", "description"),
    ServiceProvider: ("allowed",),
}
_ROWS: Final = (
    f"SELECT {{}}, {SEAL_ENDED}, {DISABLED_KEYS} FROM registry_token t"  # noqa: S608 — our own text
    " JOIN registry_grant g ON g.id = t.grant_id"
    " JOIN registry_agent a ON a.id = g.agent_id LEFT JOIN registry_human h ON h.id = a.human_id"
    " JOIN registry_serviceprovider s ON s.id = g.service_provider_id"
)
_BEHIND: Final = {
    "g": all_but(Grant, *_UNREAD[Grant]),
    "a": all_but(Agent, *_UNREAD[Agent]),
    "h": all_but(Human),
    "s": all_but(ServiceProvider, *_UNREAD[ServiceProvider]),
}
_OF_ONE: Final = SelectQuery(f"{_ROWS} WHERE t.jti = %s", t=all_but(Token), **_BEHIND)
_OF_MANY: Final = SelectQuery(
    f"{_ROWS} WHERE t.jti = ANY(%s)", t=all_but(Token, "claims"), **_BEHIND
)


def _states(rows: Sequence[tuple[Any, ...]]) -> list[TokenState]:
    sealed = [agent.is_sealed(ended=ended) for _, _, agent, _, _, ended, _ in rows]
    terms = [
        terms_of(grant, agent, service_provider, is_sealed=is_sealed)
        for (_, grant, agent, _, service_provider, *_), is_sealed in zip(rows, sealed, strict=True)
    ]
    # One statement read all rows, so they share one count of disabled keys.
    proofs = (
        PROVED.proofs({each for each in terms if each}, disabled_keys=rows[0][-1]) if rows else {}
    )
    return [
        _state(read, proofs[each].kid if each in proofs else None, is_sealed=is_sealed)
        for (*read, _, _), each, is_sealed in zip(rows, terms, sealed, strict=True)
    ]


def _state(row: Sequence[Any], receipt_kid: str | None, *, is_sealed: bool) -> TokenState:
    token, grant, agent, human, service_provider = row
    if not is_sealed:
        # An attacker may have written the owner: do not record the refusal under that person.
        human = None
    token.grant = grant
    grant.agent = agent
    grant.service_provider = service_provider
    agent.human = human
    return TokenState(token, grant, agent, human, service_provider, receipt_kid)
