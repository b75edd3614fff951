"""The interface of a decision store, so that a verification does not depend on where it is decided.

A store gets a `StoreCall`, whose token, proof and binding have been checked. It spends the proof,
applies `agentauth.protocol.decision_rules.decide`, writes the outcome and records the event:

- A light call: `decide` runs first, on cached state. Then one Redis script spends the proof, checks
  the rate and records the event, atomically.
- A durable call: one database transaction reads the state, calls `decide`, and writes the outcome
  and the event. It also spends the proof, unless Redis is the replay cache: then a script has spent
  the proof and reserved a use of the rate before the transaction.

`decide` answers Allow, Repeat, AskHuman or Refuse. A store answers `Permit` (allowed now, or
repeated), `Refuse` (also if a human must be asked), or `StoredAnswer` for a call that was answered
before. Every store guarantees:

- A proof is spent at most once, and stays spent whatever follows. A dry run spends none.
- Decisions about one agent at one service provider see each other's counters, so concurrent calls
  cannot exceed a limit.
- Counters, remembered operation, consumed confirmation and event are written together or not at
  all. A refusal changes no counter; a use of the rate that was reserved in Redis is given back. If
  that fails, the agent waits one interval longer than needed, and no limit is exceeded.
- With a `provider_key`, the answer is kept together with the outcome and returned to the same call
  again; a yes only while its token may still act.
- If the store cannot guarantee this, it raises, and no caller is told yes.

Durable calls: `database_decisions` decides, over `transaction_batch` (its reads and writes);
`group_commit` lets calls share a commit; `stored_answers` answers a lost call again;
`decision_audit_events` is the event of each decision. Light calls: `redis_decisions` decides,
`lua_scripts` run inside Redis (on `redis_keys`), and `stream_entry_encoding` (with
`stream_entry_macs`) carries the event until the outbox reads it with `decision_stream_reader` and
`stream_entry_decoding`. `acknowledged_events` counts what a lost Redis takes along. Connections to
Redis: `redis_url`, `sentinels`, `redis_client`, `redis_servers` (for an event loop),
`redis_servers_for_threads`; for all but decisions `redis_py_client` and `redis_probe`.
`log_size_mark` reveals a restored database.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from agentauth.protocol.capability import Action
from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.protocol.fast_dataclass import per_call
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.token import TokenClaims
from audit.services import Actor
from verifier.services.replay_epochs import ReplayEpoch

# The digest of "no action". No canonical JSON object hashes to it.
_NO_ACTION: Final = sha256(b"agentauth/no-action/v1")
# A call's proof must be spent within 10 s of its start; replay caches count on it
# (`check_in_time`).
_MOST_WAIT: Final = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class ProviderKey:
    """A provider's call under an `Idempotency-Key`, so that a lost answer can be had again.

    `digest` is SHA-256 over provider and key, `body_sha256` over the body's bytes as received.
    """

    digest: bytes
    body_sha256: bytes


@per_call(frozen=True, slots=True)
class StoreCall:
    """A verification that passed every check that needs no store.

    `now` is aware, to the microsecond.
    """

    service_provider_id: uuid.UUID
    claims: TokenClaims
    # The proof's identity, and until when (Unix seconds) the replay cache must remember it.
    proof_jkt: str
    proof_jti: str
    spent_until: int
    action: Action | None
    operation_key: str | None
    dry_run: bool
    actor: Actor
    now: datetime
    # The epoch it was prepared under. It is decided under that epoch or not at all.
    replay_epoch: ReplayEpoch
    # The nonce the agent should use next, if its own is about to expire. Sent with a yes.
    fresh_nonce: str | None = None
    # None for a dry run: it consumes nothing, so its answer is not kept but decided again.
    provider_key: ProviderKey | None = None

    @property
    def queue(self) -> str:
        """The counters it may change: those of one agent at one provider, across all grants."""
        return f"{self.claims.agent_id} {self.service_provider_id}"

    @property
    def action_digest(self) -> bytes:
        """SHA-256 of the canonical action, or of "no action". An operation's key is bound to it."""
        return _NO_ACTION if self.action is None else self.action.digest()


@per_call(frozen=True, slots=True)
class SpendResult:
    """The result of spending a proof, and the state of the rate, if Redis keeps both."""

    # False: the proof was spent before.
    first: bool
    # Whether Redis keeps the rate. `tat_us` is then the grant's before this call and overrides the
    # ledger.
    elsewhere: bool = False
    tat_us: int | None = None
    # `tat_us` including the one use reserved for this call. None if none was reserved.
    reserved_us: int | None = None
    # The same call spent the proof, too long ago to know its outcome. Raised unless its answer is
    # found.
    unsure: TemporarilyUnavailableError | None = None


@per_call(frozen=True, slots=True)
class Permit:
    """An allowed decision: the response body, and whether the operation was allowed before."""

    answer: Mapping[str, Any]
    repeated: bool


@per_call(frozen=True, slots=True)
class StoredAnswer:
    """The answer, yes or no, that this same call of the service provider got before."""

    body: Mapping[str, Any]


@per_call(frozen=True, slots=True)
class EarlyRefusal:
    """A verification refused before the store: only its event is written.

    `claims` if the token was good.
    """

    service_provider_id: uuid.UUID
    refuse: Refuse
    claims: TokenClaims | None
    action: Action | None
    operation_key: str | None
    dry_run: bool
    actor: Actor
    now: datetime
    # The key, if the proof disclosed its private half.
    leaked_key: PublicKey | None = None
    provider_key: ProviderKey | None = None
    # How many refusals its event counts, itself included. 0: no event; a later one counts it.
    stands_for: int = 1

    @property
    def queue(self) -> str:
        """Empty: it changes no counters."""
        return ""


class NotDoneError(TemporarilyUnavailableError):
    """Nothing of the call was done; the caller may retry at once."""


# What a store gets: a call to decide, or one refused earlier.
Prepared = StoreCall | EarlyRefusal


def busy() -> NotDoneError:
    """The error of a call that waited too long for another transaction on the same counters."""
    return NotDoneError("Another decision for this agent is in progress. Try again.")


class HeldUpError(Exception):
    """The call changed nothing: another transaction holds its lock.

    `told` is raised if retrying fails.
    """

    def __init__(self, told: Exception) -> None:
        super().__init__()
        self.told = told


def check_in_time(call: StoreCall) -> None:
    """Call this right before the proof is spent. Raises TemporarilyUnavailableError after 10 s.

    A proof's age is checked when the call begins. If the call then waits too long, as on a database
    that hangs, the proof may have been used elsewhere and already dropped from the replay cache.
    """
    if datetime.now(UTC) - call.now > _MOST_WAIT:
        raise TemporarilyUnavailableError("The call waited too long. Try again.")
