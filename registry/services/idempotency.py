"""One answer per (caller, route, Idempotency-Key), written in the transaction of the act it answers."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.db import OperationalError, connection, transaction

from agentauth.protocol.errors import (
    IdempotencyInProgressError,
    IdempotencyMismatchError,
    InvalidRequestError,
)
from registry.models import IdempotencyRecord

KEPT_FOR = timedelta(hours=24)
_ROUTE_CHARACTERS = 80
# Visible ASCII without the comma: by it servers join two header lines, and which of them names the act?
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,255}")
_LOCK_NOT_AVAILABLE = "55P03"
_INSERT = (
    "INSERT INTO registry_idempotencyrecord (caller, route, key, body_sha256, status, body, token_jti, created_at, expires_at) "
    "VALUES (%s, %s, %s, %s, 0, '{}', '', %s, %s) ON CONFLICT (caller, route, key) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an act answers: HTTP status, JSON body without any secret, and the token it issued, if it did.

    Secrets (a claim's link and code, a token) are added when the answer is rendered and never stored here.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    token_jti: str = ""


def check_key(key: str) -> None:
    """Refuse what is no Idempotency-Key of a header. Raises InvalidRequestError."""
    if not _KEY.fullmatch(key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters.")


def run_once(
    *, caller: str, route: str, key: str | None, body_sha256: bytes, now: datetime, act: Callable[[], Answer]
) -> Answer:
    """Run `act` in one transaction with the row that remembers its answer for 24 h; without `key` just run it.

    1. The row goes in first: a second call with the same key waits on it (docs/protocol.md section 0: up to 1.6 s,
       the database's lock timeout). 2. Then the act. 3. Then its answer goes into the row, and both commit
       together. A refusal rolls both back, so it is not remembered: the next call is judged anew.

    Raises InvalidRequestError for a key outside 1–255 visible ASCII characters, IdempotencyMismatchError where
    the body differs, IdempotencyInProgressError where the first call did not end in time; and what `act` raises.
    """
    if key is None:
        with transaction.atomic():
            return act()
    check_key(key)
    if len(route) > _ROUTE_CHARACTERS:
        # A path is the caller's to choose, and no id of ours is that long: PostgreSQL would answer with an error.
        route = hashlib.sha256(route.encode()).hexdigest()
    scope = {"caller": caller, "route": route, "key": key}
    with transaction.atomic():
        if not _claim(caller, route, key, body_sha256, now):
            # The row may have expired, or its cleaner be at it: then it is ours after all.
            IdempotencyRecord.objects.filter(**scope, expires_at__lte=now).delete()
            if not _claim(caller, route, key, body_sha256, now):
                return _remembered(IdempotencyRecord.objects.get(**scope), body_sha256)
        answer = act()
        IdempotencyRecord.objects.filter(**scope).update(
            status=answer.status, body=dict(answer.body), token_jti=answer.token_jti
        )
    return answer


def _claim(caller: str, route: str, key: str, body_sha256: bytes, now: datetime) -> bool:
    """Insert the row; False where another call was first, once that one has committed."""
    times = [connection.ops.adapt_datetimefield_value(at) for at in (now, now + KEPT_FOR)]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_INSERT, [caller, route, key, body_sha256, *times])
            return bool(cursor.rowcount == 1)
    except OperationalError as error:
        if not waited_too_long(error):
            raise
        # Whether the first call's act will be done is not known yet: the honest answer is to ask again.
        raise IdempotencyInProgressError(
            "The first call with this Idempotency-Key is still running. Ask again in a moment."
        ) from error


def waited_too_long(error: OperationalError) -> bool:
    """Whether PostgreSQL's lock_timeout ran out while another held the row; else the database itself is in trouble.

    SQLite has waited for the writer before any statement.
    """
    return getattr(error.__cause__, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _remembered(row: IdempotencyRecord, body_sha256: bytes) -> Answer:
    if bytes(row.body_sha256) != body_sha256:
        raise IdempotencyMismatchError("This Idempotency-Key was used with another request body.")
    return Answer(status=row.status, body=row.body, token_jti=row.token_jti)
