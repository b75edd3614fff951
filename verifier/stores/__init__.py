"""What a verification asks of a store, and what it answers: one interface, so that there can be two homes.

A store is the only part of a verification that does I/O. It is given a `StoreCall` (token, proof and binding are
good) and in one atomic step spends the proof, reads the state, lets `agentauth.protocol.decision.decide` judge, writes what
that says and records the event. What any home must keep:

- A proof is spent at most once, and stays spent whatever follows, except in a dry run.
- Decisions about one agent at one service provider see each other's counters: no limit is passed under any concurrency.
- Counters, remembered operation, consumed confirmation and event are written together or not at all; a refusal
  changes no counter.
- With a `delivery`, the answer is kept in that same step, and given again to the same call; a yes only while its
  token may still act.
- Where it cannot do so, it raises, and no caller is told yes.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from agentauth.protocol.capability import Action
from agentauth.protocol.decision import Refuse
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.token import TokenClaims
from agentauth.protocol.values import per_call
from audit.services import Actor
from verifier.services.home import Tenure

# Stands for "no action" where an action's digest is asked for: no canonical JSON object hashes to it.
_NO_ACTION: Final = sha256(b"agentauth/no-action/v1")
# From the moment a call began until its proof is spent; the memories of spent proofs reckon with it.
_MOST_WAIT: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Delivery:
    """One call of a service provider under a name of its own, so that a lost answer can be asked for again.

    `digest` is SHA-256 over the provider and its key, `body_sha256` over the body's bytes as they came.
    """

    digest: bytes
    body_sha256: bytes


@per_call(frozen=True, slots=True)
class StoreCall:
    """A verification that passed everything that needs no store. `now` is aware, to the microsecond."""

    service_provider_id: uuid.UUID
    claims: TokenClaims
    # The proof's identity, and until when (unix seconds) it must be remembered.
    proof_jkt: str
    proof_jti: str
    spent_until: int
    action: Action | None
    operation_key: str | None
    dry_run: bool
    actor: Actor
    now: datetime
    # What it was prepared under: it is decided under this or not at all.
    tenure: Tenure
    # The nonce the agent should use from now on, where its own is about to end; told with a yes.
    fresh_nonce: str | None = None
    delivery: Delivery | None = None

    @property
    def queue(self) -> str:
        """Whose counters it may change: those of one agent at one service provider, whichever of its grants is used."""
        return f"{self.claims.agent_id} {self.service_provider_id}"

    @property
    def action_digest(self) -> bytes:
        """SHA-256 of the canonical action, also of none: what an operation's key is bound to."""
        return _NO_ACTION if self.action is None else self.action.digest()


@per_call(frozen=True, slots=True)
class Spent:
    """What became of a proof that was to be spent, and of the rate, where both are kept outside the database."""

    # False: it was spent before.
    first: bool
    # Whether the rate is kept there too: `tat_us` is then the grant's, before this call, and the ledger's does not count.
    elsewhere: bool = False
    tat_us: int | None = None
    # The same with the one use that was set aside for this call; None where none was.
    reserved_us: int | None = None
    # It was spent by this very call, too long ago to know what came of it: what the caller is told unless its answer is found.
    unsure: TemporarilyUnavailableError | None = None


@per_call(frozen=True, slots=True)
class Permit:
    """What a store gives back for an allowed decision: the body to send, and whether it was remembered."""

    answer: Mapping[str, Any]
    repeated: bool


@per_call(frozen=True, slots=True)
class Recalled:
    """The answer this very call of the service provider was given before, a yes or a no."""

    body: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class EarlyRefusal:
    """A verification that ended before the store: its event is all there is to write. `claims` if the token was good."""

    service_provider_id: uuid.UUID
    refuse: Refuse
    claims: TokenClaims | None
    action: Action | None
    operation_key: str | None
    dry_run: bool
    actor: Actor
    now: datetime
    # A key whose private half the proof gave away.
    leaked_key: PublicKey | None = None
    delivery: Delivery | None = None
    # How many refusals its event stands for, itself among them; 0: it has none, and a later one stands for it too.
    stands_for: int = 1

    @property
    def queue(self) -> str:
        """None: it changes no counters."""
        return ""


class NotDoneError(TemporarilyUnavailableError):
    """It is certain that nothing of the call was done."""


# What a store is asked: a call that is judged there, or one that was refused before.
Prepared = StoreCall | EarlyRefusal


def busy() -> NotDoneError:
    """The error of a call whose counters another transaction held for too long."""
    return NotDoneError("Another decision for this agent is in progress. Try again.")


class HeldUpError(Exception):
    """The call changed nothing: another transaction is deciding on the same. `told` is the error once there is no time to try again."""

    def __init__(self, told: Exception) -> None:
        super().__init__()
        self.told = told


def check_in_time(call: StoreCall) -> None:
    """Ask it right before the proof is spent. Raises TemporarilyUnavailableError for a call that waited for too long.

    A proof is judged by the moment its call began. It may have been used since then, and be forgotten: nobody
    remembers it for long after it could be used. So it waits with a database that hangs, and then it does not pass.
    """
    if datetime.now(UTC) - call.now > _MOST_WAIT:
        raise TemporarilyUnavailableError("This waited for too long. Try again.")
