"""Signing keys: who signs now, which keys verify, and how one follows another. Private keys stay in the backends."""

import json
import logging
from datetime import datetime
from functools import lru_cache
from typing import Any

from django.db import IntegrityError, transaction

from agentauth.protocol.errors import InvalidStateError, NotFoundError, TemporarilyUnavailableError
from agentauth.protocol.keys import PublicKey, Signer, parse_jwk
from audit import kinds
from audit.services import SYSTEM, Actor, record
from kms import backends
from kms.lifetimes import PUBLISHED_BEFORE_USE, lifetimes, needed_until
from kms.models import Key
from kms.state import Subject, publish_change

logger = logging.getLogger(__name__)

_LIVING = [Key.State.NEXT, Key.State.ACTIVE]
# Enough for every purpose's next, active and a few retired keys; a bound all the same.
_CACHED_KEYS = 64


class _KeySigner:
    """A backend's signer under the name its row gives it; what the backend raises becomes one word for callers."""

    __slots__ = ("_signer", "kid")

    def __init__(self, signer: Signer, kid: str) -> None:
        self._signer = signer
        self.kid = kid

    @property
    def alg(self) -> str:
        return self._signer.alg

    @property
    def public(self) -> PublicKey:
        return self._signer.public

    def sign(self, message: bytes) -> bytes:
        try:
            return self._signer.sign(message)
        except backends.BackendError as error:
            raise _unavailable(error) from error


def signer(*, purpose: str, now: datetime) -> Signer:
    """The key that signs for `purpose` (token, audit, receipt) at `now`.

    Which key that is comes from the database at every call, so that a rotated or disabled key is never served
    from memory; only the opened key itself is kept. Raises TemporarilyUnavailableError where there is no such
    key or its backend fails, here or in the signer's `sign`.
    """
    key = (
        Key.objects.filter(purpose=purpose, state__in=_LIVING, active_from__lte=now)
        .order_by("-active_from")
        .first()
    )
    if key is None:
        raise _unavailable(f"No key of purpose {purpose!r} may sign now; run manage.py rotate_key {purpose}.")
    try:
        opened = _opened(key.uri)
        published = opened.public == _public(key)
    except backends.BackendError as error:
        raise _unavailable(error) from error
    if not published:
        # Signing with it would make tokens nobody can verify, or that another key's owner can.
        raise _unavailable(f"The key at {key.uri} is not the one that was published as {key.kid}.")
    return _KeySigner(opened, key.kid)


def verification_keys(*, purpose: str, now: datetime) -> dict[str, PublicKey]:
    """Every key whose signatures count at `now`, by `kid`: next, active, and retired until no longer needed."""
    return {key.kid: _public(key) for key in _verifying(purpose, now)}


def public_jwks(*, purpose: str, now: datetime) -> dict[str, list[dict[str, str]]]:
    """The JWK Set of the same keys (RFC 7517 section 5): public members, `kid`, `use`, and `alg` as in headers."""
    return {
        "keys": [
            _public(key).jwk | {"kid": key.kid, "use": "sig", "alg": key.algorithm}
            for key in _verifying(purpose, now)
        ]
    }


def ensure_key(*, purpose: str, actor: Actor, now: datetime) -> Key:
    """The key that signs or will sign for `purpose`, made if there is none. Safe to call at every start.

    Raises TemporarilyUnavailableError when the backend cannot make one.
    """
    living = Key.objects.filter(purpose=purpose, state__in=_LIVING).order_by("active_from")
    if (key := living.first()) is not None:
        return key
    try:
        return rotate_key(purpose=purpose, actor=actor, now=now)
    except InvalidStateError:
        # Another process made it between the two lines.
        return living.get()


def rotate_key(*, purpose: str, actor: Actor, now: datetime) -> Key:
    """Publish the next key of `purpose`; it signs by itself once every verifier has had time to fetch it.

    A purpose's very first key signs at once: no verifier has an older set (docs/protocol.md section 4). Raises
    InvalidStateError while an earlier next key still waits, ValueError for an unknown purpose, and
    TemporarilyUnavailableError when the backend cannot make a key.
    """
    if purpose not in Key.Purpose.values:
        raise ValueError(f"unknown key purpose: {purpose}")
    promote_due_keys(now=now)
    _refuse_second_next(purpose)
    first = not Key.objects.filter(purpose=purpose).exists()
    try:
        # The key is kept before its row is: a crash in between leaves a key nobody names, never the reverse.
        uri, public = backends.create(purpose=purpose)
    except backends.BackendError as error:
        raise _unavailable(error) from error
    key = Key(
        kid=public.thumbprint,
        purpose=purpose,
        state=Key.State.ACTIVE if first else Key.State.NEXT,
        uri=uri,
        algorithm=public.alg,
        public_jwk=public.jwk,
        published_at=now,
        active_from=now if first else now + PUBLISHED_BEFORE_USE,
    )
    try:
        with transaction.atomic():
            key.save(force_insert=True)
            publish_change(Subject.KEY, key.kid, now=now)
            _record(kinds.KEY_ACTIVATED if first else kinds.KEY_PUBLISHED, key, actor=actor, now=now)
    except IntegrityError:
        raise InvalidStateError(f"Another {purpose} key was made at the same time.") from None
    return key


def promote_due_keys(*, now: datetime, actor: Actor = SYSTEM) -> int:
    """Record every switch-over whose time has come; returns how many. The switch itself needs no recording."""
    due = Key.objects.filter(state=Key.State.NEXT, active_from__lte=now)
    return sum(_promote(key, actor=actor, now=now) for key in due)


def disable_key(*, kid: str, actor: Actor, now: datetime) -> Key:
    """Refuse everything a key signed, from now on and for good: it may be known to someone else.

    Where it was the one that signs, nothing of its purpose is signed until the next key's time has come: run
    `rotate_key` first if the purpose has no next key. Raises NotFoundError, and InvalidStateError when it is
    disabled already.
    """
    promote_due_keys(now=now)
    with transaction.atomic():
        swapped = (
            Key.objects.filter(kid=kid)
            .exclude(state=Key.State.DISABLED)
            .update(state=Key.State.DISABLED, disabled_at=now)
        )
        key = Key.objects.filter(kid=kid).first()
        if key is None:
            raise NotFoundError("There is no key of that name.")
        if not swapped:
            raise InvalidStateError("The key is disabled already.")
        publish_change(Subject.KEY, key.kid, now=now)
        _record(kinds.KEY_DISABLED, key, actor=actor, now=now)
    return key


class _OvertakenError(Exception):
    """Another process recorded the switch first: undo our half."""


def _promote(key: Key, *, actor: Actor, now: datetime) -> bool:
    switched_at = key.active_from
    try:
        with transaction.atomic():
            active = Key.objects.filter(purpose=key.purpose, state=Key.State.ACTIVE)
            replaced = active.values_list("kid", flat=True).first()
            active.update(
                state=Key.State.RETIRED,
                retired_at=switched_at,
                needed_until=needed_until(key.purpose, switched_at),
            )
            if not Key.objects.filter(pk=key.pk, state=Key.State.NEXT).update(state=Key.State.ACTIVE):
                raise _OvertakenError  # noqa: TRY301 — raising is what rolls the half back
            publish_change(Subject.KEY, key.kid, now=now)
            _record(kinds.KEY_ACTIVATED, key, actor=actor, now=now, replaced=replaced)
    except _OvertakenError:
        return False
    return True


def _refuse_second_next(purpose: str) -> None:
    waiting = Key.objects.filter(purpose=purpose, state=Key.State.NEXT).first()
    if waiting is not None:
        raise InvalidStateError(
            f"The next {purpose} key {waiting.kid} is published and signs from "
            f"{waiting.active_from:%Y-%m-%d %H:%M:%S} UTC on; rotate again after that."
        )


def _verifying(purpose: str, now: datetime) -> list[Key]:
    keys = Key.objects.filter(purpose=purpose).order_by("-active_from", "kid")
    return [life.key for life in lifetimes(keys, now=now) if life.verifies(now)]


def _record(kind: str, key: Key, *, actor: Actor, now: datetime, replaced: str | None = None) -> None:
    data = {"kid": key.kid, "purpose": key.purpose, "algorithm": key.algorithm}
    record(kind=kind, actor=actor, at=now, data=data | ({"replaced": replaced} if replaced else {}))


@lru_cache(maxsize=_CACHED_KEYS)
def _opened(uri: str) -> Signer:
    # A URI names one key for ever, so what is kept here cannot go stale; failures are not kept.
    return backends.open_signer(uri)


def _public(key: Key) -> PublicKey:
    return _parsed(json.dumps(key.public_jwk, sort_keys=True))


@lru_cache(maxsize=_CACHED_KEYS)
def _parsed(jwk: str) -> PublicKey:
    return parse_jwk(json.loads(jwk))


def _unavailable(why: Any) -> TemporarilyUnavailableError:
    # The operator's log says what is wrong with the key; the caller learns only that it may try again.
    logger.error("signing is unavailable: %s", why)
    return TemporarilyUnavailableError("Signing is not available right now. Try again shortly.")
