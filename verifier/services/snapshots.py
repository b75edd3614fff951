"""What a process holds in memory of the state it decides by: tokens with all they hang on, as of one query each."""

import itertools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Final, Generic, TypeVar

from agentauth.protocol.capability import Action, Capability, parse_capabilities
from agentauth.protocol.envelope import EMPTY, Envelope, parse_envelope
from agentauth.protocol.errors import AgentAuthError
from agentauth.protocol.limits import Rate
from kms.state import Subject
from registry.services.state import TokenState, token_states
from verifier.services.state import Change

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")
_INSTANT: Final = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True)
class Known:
    """A token's state, with its grant's capabilities and envelope parsed.

    What time ends is not ended here: ask `refusal` with the time of each decision. `capabilities` and `envelope` are
    None only of a grant that has none, or none that can be read any more, and such a one is refused.
    """

    state: TokenState
    capabilities: tuple[Capability, ...] | None
    envelope: Envelope | None
    # The envelope without its rate, and the rate alone: a script judges that, together with the proof.
    unrated: Envelope
    rate: Rate | None
    # Whether the envelope asks for nothing that is kept in the database: no budget, no count of uses, no presence.
    light: bool
    # The subjects of which any change ends this knowledge.
    rests_on: tuple[Change, ...]
    # Until when `refusal` is None, whoever asks: time only ever ends things. None where it never is.
    good_until: datetime | None
    # What each yes of this token to the same action says alike (`verifier.stores.light`); it goes with this knowledge.
    yeses: dict[Action | None, Any] = field(default_factory=dict, compare=False, repr=False)

    def refusal(self, now: datetime) -> str | None:
        """Why the token may not act at `now`, as `registry.services.state.TokenState` says it."""
        if self.good_until is not None and now < self.good_until:
            return None
        return self.state.refusal(now)


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
    """The rows with what is written in the grant read. Raises AgentAuthError where that cannot be read and the token may act."""
    grant, human_id = state.grant, state.agent.human_id
    subjects = [
        Change(Subject.TOKEN, state.token.jti),
        Change(Subject.GRANT, str(grant.pk)),
        Change(Subject.AGENT, str(state.agent.pk)),
        Change(Subject.SERVICE_PROVIDER, str(state.service_provider.pk)),
    ]
    if human_id is not None:
        subjects.append(Change(Subject.HUMAN, str(human_id)))
    if state.receipt_kid is not None:
        # Disabled, it proves nothing any more.
        subjects.append(Change(Subject.KEY, state.receipt_kid))
    good_until = _good_until(state)
    may_act = good_until is not None
    envelope = _read(parse_envelope, grant.envelope, needed=may_act)
    return Known(
        state=state,
        capabilities=_read(parse_capabilities, grant.capabilities, needed=may_act),
        envelope=envelope,
        unrated=replace(envelope or EMPTY, max_requests_per_minute=None, max_burst=None),
        rate=None if envelope is None else envelope.rate,
        light=envelope is not None
        and not envelope.budgets
        and envelope.max_uses is None
        and not envelope.requires_human_online,
        rests_on=tuple(subjects),
        good_until=good_until,
    )


def _read(parse: Callable[[Any], V], written: Any, *, needed: bool) -> V | None:
    """Terms of a grant; None where there are none, or where they cannot be read and are not `needed`.

    A deleted person's grants have an empty list of capabilities. The state refuses their tokens.
    """
    try:
        return None if written is None else parse(written)
    except AgentAuthError:
        if needed:
            raise
        return None


def _good_until(state: TokenState) -> datetime | None:
    if state.grant.valid_until is None:
        return None
    end = min(state.grant.valid_until, state.agent.expires_at)
    return None if state.refusal(end - _INSTANT) else end


class Copies(Generic[K, V]):
    """At most `bound` values by their keys, the least lately asked for given up first; a change drops what rests on it.

    For one thread. Dropping takes as long as there are values concerned.
    """

    def __init__(self, bound: int, rests_on: Callable[[V], Sequence[Change]]) -> None:
        self._bound = bound
        self._rests_on = rests_on
        self._values: OrderedDict[K, V] = OrderedDict()
        self._resting: dict[Change, set[K]] = {}

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
        for change in self._rests_on(value):
            self._resting.setdefault(change, set()).add(key)

    def drop(self, change: Change) -> None:
        """Forget all that rests on what changed."""
        for key in tuple(self._resting.get(change, ())):
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
        for change in self._rests_on(value):
            keys = self._resting[change]
            keys.discard(key)
            if not keys:
                del self._resting[change]
