"""What a process holds in memory of the state it decides by: tokens with all they hang on, as of one query each."""

import itertools
import uuid
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, Generic, NamedTuple, TypeVar

import orjson

from agentauth.protocol.capability import Action, Capability, parse_capabilities
from agentauth.protocol.envelope import EMPTY, Envelope, parse_envelope
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.limits import Rate
from agentauth.protocol.token import TokenClaims
from audit.identifiers import id_text
from kms.state import Subject
from registry.services.state import Ends, TokenState, refusal_at, token_states
from verifier.services.state import Change

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Shown(NamedTuple):
    """What an answer says of an agent."""

    id: uuid.UUID
    name: str
    model_origin: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What is written in a grant, read: equal terms of many grants are one object.

    `capabilities` are empty where there are none, or none that can be read any more; such a grant's tokens are refused.
    `unrated` is the envelope without its rate, which a script judges together with the proof. `light`: the envelope asks
    for nothing that is kept in the database: no budget, no count of uses, no presence.
    """

    capabilities: tuple[Capability, ...]
    unrated: Envelope
    rate: Rate | None
    light: bool


@dataclass(frozen=True, slots=True)
class Known:
    """What is decided by of one token. No rows: a process keeps it for 100,000 tokens (docs/operations.md says how much it takes)."""

    grant_id: str
    grant_version: int
    service_provider_id: uuid.UUID
    agent: Shown
    human_id: uuid.UUID | None
    # When the grant was approved, if it follows another one.
    follows_at: datetime | None
    expires_at: datetime
    ends: Ends
    terms: Terms
    # Hashes of the subjects of which any change ends this knowledge: where two are equal, it ends too early.
    rests_on: tuple[int, ...]
    # What each yes of this token to the same action says alike (`verifier.stores.light`); it goes with this knowledge.
    yeses: dict[Action | None, Any] = field(default_factory=dict, compare=False, repr=False)

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now`, as `registry.services.state.TokenState` says it."""
        return refusal_at(self.ends, now)

    def is_of(self, claims: TokenClaims, service_provider_id: uuid.UUID) -> bool:
        """As `registry.services.state.TokenState.is_of`."""
        return (
            self.grant_id == claims.grant_id
            and self.grant_version == claims.grant_version
            and self.service_provider_id == service_provider_id
        )


def known_tokens(jtis: Sequence[str]) -> dict[str, Known | Exception]:
    """What is true of these tokens now, in one query, by `jti`; one that was never issued here is left out.

    A grant whose terms cannot be read although it may act is a defect: its own tokens bring the error, no others do.
    """
    known: dict[str, Known | Exception] = {}
    for jti, state in token_states(jtis).items():
        try:
            known[jti] = known_of(state)
        except AgentAuthError as error:
            known[jti] = error
    return known


def known_of(state: TokenState) -> Known:
    """What is decided by of these rows. Raises AgentAuthError where the terms cannot be read and the token may act."""
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
        # Disabled, it proves nothing any more.
        subjects.append(Change(Subject.KEY, state.receipt_kid))
    ends = state.ends
    may_act = all(at is not None for at, _ in ends)
    return Known(
        grant_id=id_text(grant.pk),
        grant_version=state.token.grant_version,
        service_provider_id=state.service_provider.pk,
        agent=Shown(agent.pk, agent.name, agent.model_origin),
        human_id=human_id,
        follows_at=grant.follows_at,
        expires_at=state.token.expires_at,
        ends=ends,
        terms=_read_terms(grant.capabilities, grant.envelope, needed=may_act),
        rests_on=tuple(map(hash, subjects)),
    )


_NO_TERMS: Final = Terms((), EMPTY, None, light=False)


def _read_terms(capabilities: Any, envelope: Any, *, needed: bool) -> Terms:
    """A deleted person's grants have an empty list of capabilities, one that was never approved has none. The state refuses their tokens."""
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


class Copies(Generic[K, V]):
    """At most `bound` values by their keys, the least lately asked for given up first; a change drops what rests on it.

    `rests_on` gives the hashes of the subjects. For one thread. Dropping takes as long as there are values concerned.
    """

    def __init__(self, bound: int, rests_on: Callable[[V], Sequence[int]]) -> None:
        self._bound = bound
        self._rests_on = rests_on
        self._values: OrderedDict[K, V] = OrderedDict()
        # Most subjects are those of one value: then it is its key alone that stands here.
        self._resting: dict[int, K | set[K]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: K) -> V | None:
        """What is held under `key`."""
        value = self._values.get(key)
        if value is not None:
            self._values.move_to_end(key)
        return value

    def keep(self, key: K, value: V) -> None:
        """Hold `value` in place of what was held under `key`."""
        self._remove(key)
        if len(self._values) >= self._bound:
            self._remove(next(iter(self._values)))
        self._values[key] = value
        for subject in self._rests_on(value):
            there = self._resting.get(subject)
            if there is None:
                self._resting[subject] = key
            elif isinstance(there, set):
                there.add(key)
            elif there != key:
                self._resting[subject] = {there, key}

    def drop(self, change: Change) -> None:
        """Forget all that rests on what changed."""
        there = self._resting.get(hash(change))
        if there is None:
            return
        for key in tuple(there) if isinstance(there, set) else (there,):
            self._remove(key)

    def drop_ended(self, ended: Callable[[V], bool], most: int) -> None:
        """Forget at most `most` of those least lately asked for, up to the first that has not `ended`."""
        for key, value in tuple(itertools.islice(self._values.items(), most)):
            if not ended(value):
                return
            self._remove(key)

    def clear(self) -> None:
        """Forget everything."""
        self._values.clear()
        self._resting.clear()

    def _remove(self, key: K) -> None:
        value = self._values.pop(key, None)
        if value is None:
            return
        for subject in self._rests_on(value):
            there = self._resting.get(subject)
            if isinstance(there, set):
                there.discard(key)
                if not there:
                    del self._resting[subject]
            elif there == key:
                del self._resting[subject]
