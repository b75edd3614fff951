"""The answer to one call of a service provider, kept with its decision for a minute, in case it never arrived."""

import hmac
import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

from django.db import OperationalError, connection

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
    call is judged anew with its proof unspent, or both. Refusals are kept too; a fault rolls everything back.

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
