"""A token as a process caches it: with all it depends on, read by one query."""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple

import orjson

from agentauth.protocol.behavioural_envelope import EMPTY, Envelope, parse_envelope
from agentauth.protocol.capability import Action, Capability, parse_capabilities
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.usage_counters import Rate
from audit.new_ids import id_text
from kms.state_change_publisher import Subject
from registry.services.token_state import Ends, TokenState, refusal_at, token_states
from verifier.services.state_change_feed import Change


class ShownAgent(NamedTuple):
    """The agent as an answer shows it."""

    id: uuid.UUID
    name: str
    model_origin: str


@dataclass(frozen=True, slots=True)
class Terms:
    """The parsed terms of a grant; grants with equal terms share one object.

    `capabilities` are empty if there are none or they cannot be parsed; the grant's tokens are then
    refused. `unrated` is the envelope without its rate, which the Redis script judges together with
    the proof. `light`: the envelope needs nothing from the database (no budget, use count or
    presence).
    """

    capabilities: tuple[Capability, ...]
    unrated: Envelope
    rate: Rate | None
    light: bool


@dataclass(frozen=True, slots=True)
class CachedToken:
    """The state of one token that decisions use.

    It holds no model instances, to save memory: a process caches it for 100,000 tokens
    (docs/operations.md gives the size).
    """

    grant_id: str
    grant_version: int
    service_provider_id: uuid.UUID
    agent: ShownAgent
    human_id: uuid.UUID | None
    # When the grant was approved, if it follows another one.
    follows_at: datetime | None
    expires_at: datetime
    ends: Ends
    terms: Terms
    # Hashes of the subjects whose change invalidates this. A hash collision
    # only invalidates too early.
    rests_on: tuple[int, ...]
    # By action, the constant parts of its yes
    # (`verifier.stores.redis_decisions`), invalidated with this.
    yeses: dict[Action | None, Any] = field(default_factory=dict, compare=False, repr=False)

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now`, as in `registry.services.token_state.TokenState`."""
        return refusal_at(self.ends, now)

    def is_of(self, claims: TokenClaims, service_provider_id: uuid.UUID) -> bool:
        """As `registry.services.token_state.TokenState.is_of`."""
        return (
            self.grant_id == claims.grant_id
            and self.grant_version == claims.grant_version
            and self.service_provider_id == service_provider_id
        )


def load_tokens(jtis: Sequence[str]) -> dict[str, CachedToken | Exception]:
    """The current state of these tokens by `jti`, in one query; unknown tokens are left out.

    An active grant whose terms cannot be parsed is a defect. Only its own tokens get the error.
    """
    known: dict[str, CachedToken | Exception] = {}
    for jti, state in token_states(jtis).items():
        try:
            known[jti] = known_of(state)
        except AgentAuthError as error:
            known[jti] = error
    return known


def known_of(state: TokenState) -> CachedToken:
    """Convert the rows. Raises AgentAuthError for bad terms if the token may act."""
    grant, agent, human_id = state.grant, state.agent, state.agent.human_id
    subjects = [
        Change(Subject.TOKEN, state.token.jti),
        Change(Subject.GRANT, str(grant.pk)),
        Change(Subject.AGENT, str(agent.pk)),
        Change(Subject.SERVICE_PROVIDER, str(state.service_provider.pk)),
    ]
    if human_id is not None:
        subjects.append(Change(Subject.HUMAN, str(human_id)))
    if state.receipt_kid is not None:
        # If this key is disabled, the receipt proves nothing any more.
        subjects.append(Change(Subject.KEY, state.receipt_kid))
    ends = state.ends
    may_act = all(at is not None for at, _ in ends)
    return CachedToken(
        grant_id=id_text(grant.pk),
        grant_version=state.token.grant_version,
        service_provider_id=state.service_provider.pk,
        agent=ShownAgent(agent.pk, agent.name, agent.model_origin),
        human_id=human_id,
        follows_at=grant.follows_at,
        expires_at=state.token.expires_at,
        ends=ends,
        terms=_read_terms(grant.capabilities, grant.envelope, needed=may_act),
        rests_on=tuple(map(hash, subjects)),
    )


_NO_TERMS: Final = Terms((), EMPTY, None, light=False)


def _read_terms(capabilities: Any, envelope: Any, *, needed: bool) -> Terms:
    """Parse the terms. Without `needed`, terms that cannot be parsed are replaced by empty ones.

    A deleted human's grants have an empty list of capabilities, and a never approved grant has
    none; the state refuses their tokens anyway.
    """
    try:
        return _terms(orjson.dumps(capabilities), orjson.dumps(envelope))
    except AgentAuthError:
        if needed:
            raise
        return _NO_TERMS


@lru_cache(maxsize=4_096)
def _terms(capabilities: bytes, envelope: bytes) -> Terms:
    read = parse_envelope(orjson.loads(envelope))
    return Terms(
        parse_capabilities(orjson.loads(capabilities)),
        replace(read, max_requests_per_minute=None, max_burst=None),
        read.rate,
        light=not read.budgets and read.max_uses is None and not read.requires_human_online,
    )
