"""Answers to service providers' calls, kept for 60 s in case the caller never received them.

A call's name is its `Idempotency-Key`. While `verifier.stores.database_decisions` holds the lock of
that name, it looks for a kept answer, and decides the call if there is none. It writes the answer
with everything else the decision changes: after a crash there are both, or neither and the call is
decided again. Refusals are kept too; an error rolls everything back.

A proof that was spent in Redis stays spent, but `judge.lua` lets the same call pass again. No
proof is accepted twice all the same:

- The script identifies the call by provider, key and every byte of the body, hence by the proof
  itself. For any other call the proof is spent.
- A call that the script lets pass holds the lock of its name from before it looks for an answer
  until its commit. So two are never decided at once, and after one commits, the next finds its
  answer as long as the row exists. A call whose connection breaks loses the lock, and commits
  nothing.
- The row expires KEPT_FOR after the time of the call that committed it. The script lets no call
  pass later than AGAIN_FOR after the time of the first, which spent the proof. A call's time is off
  by at most 5 s (the lease), and at most 10 s old when the row is looked for (`check_in_time`);
  rows are removed by the database's clock. At worst the time of the first call is 5 s late, and
  those of the committed call and of the next are 15 s early. The next looks for the row up to 40 s
  after the first; the row is there for 45 s.

From AGAIN_FOR to KEPT_FOR the outcome is unknown, and the answer is 503; after that the call is a
replay. In another epoch the proof is refused for its nonce.
"""

import hmac
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import IdempotencyMismatchError
from verifier.answers import body_of
from verifier.models import ProviderCall
from verifier.stores import (
    EarlyRefusal,
    Prepared,
    ProviderKey,
    StoreCall,
    StoredAnswer,
    decision_audit_events,
)

if TYPE_CHECKING:
    from verifier.stores.transaction_batch import DecisionBatch

# Long enough to retry after a broken connection or a timeout; too short to be a second replay
# cache.
KEPT_FOR: Final = timedelta(seconds=60)
# For this long after its proof was spent in Redis, the same call may be decided again if no try
# committed.
AGAIN_FOR: Final = timedelta(seconds=20)


# For how long (µs) `judge.lua` lets the same call pass, and after how long it is a replay.
AGAIN_US: Final = (AGAIN_FOR // timedelta(microseconds=1), KEPT_FOR // timedelta(microseconds=1))


def mark_of(provider_key: ProviderKey) -> bytes:
    """The 32 bytes by which `judge.lua` recognises the same call."""
    return sha256(provider_key.digest + provider_key.body_sha256)


def recall_answer(
    prepared: Prepared, row: ProviderCall, work: "DecisionBatch"
) -> StoredAnswer | IdempotencyMismatchError:
    """The kept answer of this call, or the error if its name was used with another body.

    A refusal is repeated as it is. A yes is repeated only while its token may act.
    """
    provider_key = prepared.provider_key
    if provider_key is None or not hmac.compare_digest(
        bytes(row.body_sha256), provider_key.body_sha256
    ):
        return IdempotencyMismatchError("This Idempotency-Key was used with another request body.")
    answer = json.loads(row.answer)
    refuse = _present_refusal(prepared, work) if answer["valid"] is True else None
    return StoredAnswer(answer if refuse is None else body_of(refuse))


def _present_refusal(prepared: Prepared, work: "DecisionBatch") -> Refuse | None:
    """Why the token may not act now, recorded; None if it may.

    The proof was good, and is not checked again.
    """
    if isinstance(prepared, EarlyRefusal) and prepared.claims is None:
        # The token itself is refused by now: it expired, or its key was disabled.
        work.record(decision_audit_events.early_refusal(prepared))
        return prepared.refuse
    state = work.state_of(prepared)
    reason = "unknown" if state is None else state.refusal(prepared.now)
    if reason is None:
        return None
    refuse = Refuse("invalid_token", reason)
    if isinstance(prepared, StoreCall):
        work.record(decision_audit_events.refusal(prepared, refuse, state))
    else:
        work.record(decision_audit_events.early_refusal(replace(prepared, refuse=refuse)))
    return refuse
