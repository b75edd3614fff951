"""One answer per (caller, route, Idempotency-Key), stored in the transaction of its act."""

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
# Visible ASCII without the comma: servers join two header lines with a comma, and then it is
# unclear which of the two keys names the act.
_KEY = re.compile(r"[\x21-\x2b\x2d-\x7e]{1,255}")
_LOCK_NOT_AVAILABLE = "55P03"
_INSERT = (
    "INSERT INTO registry_idempotencyrecord (caller, route, key, body_sha256, status, body, "
    "token_jti, created_at, expires_at) "
    "VALUES (%s, %s, %s, %s, 0, '{}', '', %s, %s) ON CONFLICT (caller, route, key) DO NOTHING"
)


@dataclass(frozen=True, slots=True)
class IdempotentAnswer:
    """The answer to an act: HTTP status, JSON body without secrets, and the issued token, if any.

    Secrets (a claim's link and code, a token) are added at rendering and never stored here.
    """

    status: int
    body: Mapping[str, Any] = field(default_factory=dict)
    token_jti: str = ""


def check_key(key: str) -> None:
    """Refuse what is not a valid Idempotency-Key. Raises InvalidRequestError."""
    if not _KEY.fullmatch(key):
        raise InvalidRequestError("Idempotency-Key must be 1 to 255 visible ASCII characters.")


def run_once(
    *,
    caller: str,
    route: str,
    key: str | None,
    body_sha256: bytes,
    now: datetime,
    act: Callable[[], IdempotentAnswer],
) -> IdempotentAnswer:
    """Run `act` in one transaction with the row that keeps its answer for 24 h.

    Without `key`, run it in a transaction only.
    1. Insert the row. A second call with the same key waits for it, up to the database's lock
       timeout of 1.6 s (docs/protocol.md section 0).
    2. Run `act`.
    3. Store its answer in the row; both commit together. A refusal rolls both back and so is not
       remembered: the next call is judged like a first one.

    Raises InvalidRequestError for a key outside 1–255 visible ASCII characters,
    IdempotencyMismatchError if the body differs, IdempotencyInProgressError if the first call did
    not end in time; and what `act` raises.
    """
    if key is None:
        with transaction.atomic():
            return act()
    check_key(key)
    if len(route) > _ROUTE_CHARACTERS:
        # The caller chose the path, and no path with an id of ours is that long. Unhashed, it would
        # make PostgreSQL raise an error.
        route = hashlib.sha256(route.encode()).hexdigest()
    scope = {"caller": caller, "route": route, "key": key}
    with transaction.atomic():
        if not _claim(caller, route, key, body_sha256, now):
            # The row may have expired, or expiry may be deleting it: then the key is free.
            IdempotencyRecord.objects.filter(**scope, expires_at__lte=now).delete()
            if not _claim(caller, route, key, body_sha256, now):
                return _recall_answer(IdempotencyRecord.objects.get(**scope), body_sha256)
        answer = act()
        IdempotencyRecord.objects.filter(**scope).update(
            status=answer.status, body=dict(answer.body), token_jti=answer.token_jti
        )
    return answer


def _claim(caller: str, route: str, key: str, body_sha256: bytes, now: datetime) -> bool:
    """Insert the row; False if another call was first and has committed.

    Raises IdempotencyInProgressError if the other call is still running.
    """
    times = [connection.ops.adapt_datetimefield_value(at) for at in (now, now + KEPT_FOR)]
    try:
        with connection.cursor() as cursor:
            cursor.execute(_INSERT, [caller, route, key, body_sha256, *times])
            return bool(cursor.rowcount == 1)
    except OperationalError as error:
        if not waited_too_long(error):
            raise
        # The outcome of the first call is not known yet, so the caller must retry.
        raise IdempotencyInProgressError(
            "The first call with this Idempotency-Key is still running. Ask again in a moment."
        ) from error


def waited_too_long(error: OperationalError) -> bool:
    """Whether PostgreSQL's lock_timeout ran out while another transaction held the row.

    Any other error is a problem of the database. Never on SQLite, which waits for its one writer
    before any statement.
    """
    return getattr(error.__cause__, "sqlstate", None) == _LOCK_NOT_AVAILABLE


def _recall_answer(row: IdempotencyRecord, body_sha256: bytes) -> IdempotentAnswer:
    if bytes(row.body_sha256) != body_sha256:
        raise IdempotencyMismatchError("This Idempotency-Key was used with another request body.")
    return IdempotentAnswer(status=row.status, body=row.body, token_jti=row.token_jti)
