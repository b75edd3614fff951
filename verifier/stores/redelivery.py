"""The answer to one call of a service provider, kept with its decision for a minute, in case it never arrived.

`verifier.stores.database` looks for the answer when it holds the name of the call, judges where there is none, and writes the
answer with all else the decision changes: after a crash there is either neither, and the call is judged anew, or both.
Refusals are kept too; a fault rolls everything back.

A proof that was spent in Redis stays spent, and the script lets this very call pass once more (`known_again`). Why no
proof is accepted twice all the same:

- The script knows the call by provider, key and every byte of the body, so by the proof itself; for every other call
  the proof is spent as ever.
- A call that the script lets pass holds the lock of its name from before it looks for an answer until its commit. So no two
  of them are judged side by side, and once one has committed, the next finds its answer for as long as the row exists.
  One that loses the lock before its commit, because its connection broke, commits nothing.
- The row of a committed call ends KEPT_FOR after the time of that call, and the script lets no call pass AGAIN_FOR
  after the time of the first, by which the proof was spent. Times of calls are off by 5 s at most (the lease) and, when
  the row is looked for, 10 s old at most (`check_in_time`), and a row is removed by the database's clock. With all of
  it at its worst the first's time is 5 s late, that of the one that committed 15 s early, and that of the next 15 s
  early too: the next looks for the row up to 40 s after the first, and it is there until 45 s after it.

From then on until KEPT_FOR it is not known what became of the call, which is 503; then it is a replay. In another epoch
the proof is refused for its nonce.
"""

import hmac
import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from agentauth.protocol.decision import Refuse
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import IdempotencyMismatchError
from verifier.answers import body_of
from verifier.models import ProviderCall
from verifier.stores import Delivery, EarlyRefusal, Prepared, Recalled, StoreCall, events

if TYPE_CHECKING:
    from verifier.stores.work import Work

# Long enough for a caller whose connection broke or timed out to ask again, too short to be a second memory.
KEPT_FOR: Final = timedelta(seconds=60)
# So long after its proof was spent in Redis the very same call may be judged anew, if none that was judged was committed.
AGAIN_FOR: Final = timedelta(seconds=20)


# For how long (µs) `judge.lua` lets the very same call pass, and for how long it does not call it a replay.
AGAIN_US: Final = (AGAIN_FOR // timedelta(microseconds=1), KEPT_FOR // timedelta(microseconds=1))


def mark_of(delivery: Delivery) -> bytes:
    """By what `judge.lua` knows the very same call again, 32 bytes."""
    return sha256(delivery.digest + delivery.body_sha256)


def recalled(prepared: Prepared, row: ProviderCall, work: "Work") -> Recalled | IdempotencyMismatchError:
    """What this call was answered, or the error of another call under its name.

    A no stays a no. A yes is given again only where it would not be wrong by now.
    """
    delivery = prepared.delivery
    if delivery is None or not hmac.compare_digest(bytes(row.body_sha256), delivery.body_sha256):
        return IdempotencyMismatchError("This Idempotency-Key was used with another request body.")
    answer = json.loads(row.answer)
    refuse = _present_refusal(prepared, work) if answer["valid"] is True else None
    return Recalled(answer if refuse is None else body_of(refuse))


def _present_refusal(prepared: Prepared, work: "Work") -> Refuse | None:
    """Why the token may not act now, recorded; None if it may. The proof is not asked about: it was good and is spent."""
    if isinstance(prepared, EarlyRefusal) and prepared.claims is None:
        # The token itself is refused by now: it has expired, or its key was disabled.
        work.record(events.early_refusal(prepared))
        return prepared.refuse
    state = work.state_of(prepared)
    reason = "unknown" if state is None else state.refusal(prepared.now)
    if reason is None:
        return None
    refuse = Refuse("invalid_token", reason)
    if isinstance(prepared, StoreCall):
        work.record(events.refusal(prepared, refuse, state))
    else:
        work.record(events.early_refusal(replace(prepared, refuse=refuse)))
    return refuse
