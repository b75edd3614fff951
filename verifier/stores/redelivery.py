"""The answer to one call of a service provider, kept with its decision for a minute, in case it never arrived."""

import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from django.db import OperationalError, connection

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    TemporarilyUnavailableError,
)
from audit.faults import fault_point
from registry.services.idempotency import waited_too_long
from verifier.answers import body_of
from verifier.models import ProviderCall
from verifier.stores import Delivery, EarlyRefusal, Permit, Recalled, Refuse, StoreCall
from verifier.stores.events import record_early_refusal, record_refusal
from verifier.stores.state import state_of

# Long enough for a caller whose connection broke or timed out to ask again, too short to be a second memory.
KEPT_FOR = timedelta(seconds=60)
# So long after its proof was spent in Redis the very same call may be judged anew, if none that was judged was committed.
AGAIN_FOR = timedelta(seconds=20)
# One statement, so that of two at once the database picks the first. It also takes over a row whose minute has ended.
_CLAIM = (
    "INSERT INTO verifier_providercall AS held (digest, body_sha256, answer, expires_at) VALUES (%s, %s, '', %s) "
    "ON CONFLICT (digest) DO UPDATE SET body_sha256 = excluded.body_sha256, answer = '', expires_at = excluded.expires_at "
    "WHERE held.expires_at <= %s"
)


def answered_once(
    prepared: StoreCall | EarlyRefusal, judge: Callable[[], Permit | Refuse]
) -> Permit | Refuse | Recalled:
    """Judge the call and keep what came of it, or find what came of it before. Inside the store's transaction.

    1. The row goes in first: a second call under the same key waits on it. 2. Then the judgement, with all it writes.
    3. Then its answer goes into the row, and all commits together: after a crash there is either neither, and the
    call is judged anew, or both. Refusals are kept too; a fault rolls everything back.

    But for a proof that was spent in Redis: it stays spent, and the script lets this very call pass once more
    (`known_again`). Why no proof is accepted twice all the same:

    - The script knows the call by provider, key and every byte of the body, so by the proof itself; for every other call
      the proof is spent as ever.
    - Whoever is let pass holds the row from before it asks the script until its commit. So of those that are let pass
      none runs beside another, and if one has committed, the next finds its answer, for as long as there is the row. Who lost
      the row before its commit, as its connection broke, commits nothing.
    - The row of one that committed ends KEPT_FOR after the time of that call, and the script lets nobody pass AGAIN_FOR
      after the time of the first, by which the proof was spent. Times of calls are off by 5 s at most (the lease) and 10 s
      old at most (`check_in_time`), and a row is removed by the database's clock. With all of it at its worst the first's
      time is 5 s late, that of the one that committed 15 s early, and that of the next 15 s early too: its row was
      there until 25 s after the first.

    From then on until KEPT_FOR it is not known what became of the call, which is 503; then it is a replay. In another epoch
    the proof is refused for its nonce.

    Raises IdempotencyMismatchError for another body under the key, IdempotencyInProgressError where the first call
    did not end within the database's lock timeout.
    """
    delivery = prepared.delivery
    if delivery is None:
        return judge()
    if not _claim(prepared, delivery):
        return _recalled(prepared, delivery)
    outcome = judge()
    ProviderCall.objects.filter(pk=delivery.digest).update(answer=json.dumps(body_of(outcome)))
    fault_point("verify.after_answer_kept")
    return outcome


def known_again(delivery: Delivery) -> tuple[bytes, int, int]:
    """By what `judge.lua` knows the very same call again, and for how long (µs) it lets it pass, and does not call it a replay."""
    microsecond = timedelta(microseconds=1)
    return sha256(delivery.digest + delivery.body_sha256), AGAIN_FOR // microsecond, KEPT_FOR // microsecond


def _claim(prepared: StoreCall | EarlyRefusal, delivery: Delivery) -> bool:
    """Insert the row; False where another call was first, once that one has committed."""
    now, end = map(connection.ops.adapt_datetimefield_value, (prepared.now, prepared.now + KEPT_FOR))
    try:
        with connection.cursor() as cursor:
            cursor.execute(_CLAIM, [delivery.digest, delivery.body_sha256, end, now])
            return bool(cursor.rowcount == 1)
    except OperationalError as error:
        if not waited_too_long(error):
            raise
        # What comes of the first call, which holds the row, is not known yet.
        raise IdempotencyInProgressError(
            "The first call with this Idempotency-Key is still running. Ask again in a moment."
        ) from error


def _recalled(prepared: StoreCall | EarlyRefusal, delivery: Delivery) -> Refuse | Recalled:
    row = ProviderCall.objects.filter(pk=delivery.digest).first()
    if row is None:
        # Its minute ended between the look and the insert. Asked again, the call is a new one.
        raise TemporarilyUnavailableError("The answer could not be found just now. Try again.")
    if not hmac.compare_digest(bytes(row.body_sha256), delivery.body_sha256):
        raise IdempotencyMismatchError("This Idempotency-Key was used with another request body.")
    answer = json.loads(row.answer)
    # A no stays a no. A yes is given again only where it would not be wrong by now.
    refuse = _present_refusal(prepared) if answer["valid"] is True else None
    return Recalled(answer) if refuse is None else refuse


def _present_refusal(prepared: StoreCall | EarlyRefusal) -> Refuse | None:
    """Why the token may not act now, recorded; None if it may. The proof is not asked about: it was good and is spent."""
    if isinstance(prepared, EarlyRefusal) and prepared.claims is None:
        # The token itself is refused by now: it has expired, or its key was disabled.
        record_early_refusal(prepared)
        return prepared.refuse
    state = state_of(prepared)
    reason = "unknown" if state is None else state.refusal(prepared.now)
    if reason is None:
        return None
    refuse = Refuse("invalid_token", reason)
    if isinstance(prepared, StoreCall):
        record_refusal(prepared, refuse, state)
    else:
        record_early_refusal(replace(prepared, refuse=refuse))
    return refuse
