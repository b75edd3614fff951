"""Signing keys: which one signs, which verify, and rotation. Private keys stay in the backends."""

import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from typing import cast

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils.translation import gettext as _

from agentauth.protocol.errors import InvalidStateError, NotFoundError, TemporarilyUnavailableError
from agentauth.protocol.jose import parse_compact
from agentauth.protocol.key_introduction import sign_introduction
from agentauth.protocol.keys import PublicKey, Signer, parse_jwk
from audit import kinds
from audit.db.prebuilt_sql import Columns, SelectQuery
from audit.services import SYSTEM, Actor, record
from kms import backends
from kms.lifetimes import PUBLISHED_BEFORE_USE, lifetimes, needed_until
from kms.models import Key
from kms.row_seals import ENDED, select_sealed
from kms.signing_rate import PACE, SigningRateLimiter
from kms.state_change_publisher import Subject, publish_change

logger = logging.getLogger(__name__)

_LIVING = [Key.State.NEXT, Key.State.ACTIVE]
_WHO_SIGNS = (
    "SELECT {} FROM kms_key present"  # noqa: S608 — our own text
    " WHERE purpose = %s AND state IN ('next', 'active') AND active_from <= %s"
    f" AND NOT {ENDED.format('present.seal')} ORDER BY active_from DESC"
)
_PRESENT = SelectQuery(_WHO_SIGNS, present=Columns(Key, {*Key.SEALED, "seal"}))
# After a failure, scheduled rotation waits this long: each try may leave an unused key in the KMS.
ROTATE_AGAIN = timedelta(hours=1)
# By purpose: when this process may try again.
_ROTATION_FAILED: dict[str, datetime] = {}
# Enough for each purpose's next, active and a few retired keys.
_CACHED_KEYS = 64


class _KeySigner:
    """A backend's signer with its row's `kid`. It raises TemporarilyUnavailableError only."""

    __slots__ = ("_pace", "_signer", "backend", "kid", "purpose")

    def __init__(
        self, signer: Signer, key: Key, purpose: str, pace: SigningRateLimiter | None
    ) -> None:
        self._signer = signer
        self.kid, self.purpose, self.backend = key.kid, purpose, key.uri.partition(":")[0]
        self._pace = pace

    @property
    def alg(self) -> str:
        return self._signer.alg

    @property
    def public(self) -> PublicKey:
        return self._signer.public

    def sign(self, message: bytes) -> bytes:
        try:
            signature = self._signer.sign(message)
        except backends.BackendError as error:
            if self._pace and isinstance(error, backends.ThrottledError):
                self._pace.record_throttling()
            raise _unavailable(error) from error
        if self._pace:
            self._pace.record_signature()
        return signature


def signer(*, purpose: str, now: datetime) -> Signer:
    """The key that signs for `purpose` (token, audit, receipt) at `now`.

    The choice is read from the database each time, so that no rotated or disabled key is used
    (tokens cache it: `kms.token_signer.KNOWN_FOR`); only the opened key is cached. Raises
    TemporarilyUnavailableError if no key signs or its backend fails, here or in `sign`.
    """
    key = _present(purpose, now)
    if key is None:
        raise _unavailable(
            f"No key of purpose {purpose!r} may sign now; run `{settings.COMMAND} rotate_key "
            f"{purpose}`."
        )
    try:
        # Pinned to the published key: a signature by any other key never leaves here.
        pace = PACE if purpose == Key.Purpose.TOKEN else None
        return _KeySigner(_open_signer(key.uri, _public(key)), key, purpose, pace)
    except backends.BackendError as error:
        raise _unavailable(error) from error


def may_sign(*, purpose: str, now: datetime) -> bool:
    """Whether a key signs for `purpose` at `now`. Does not call its backend."""
    return _present(purpose, now) is not None


def verification_keys(*, purpose: str, now: datetime) -> dict[str, PublicKey]:
    """Keys whose signatures count at `now`, by `kid`: next, active, and retired while needed."""
    return {key.kid: _public(key) for key in _verifying(purpose, now)}


def evidence_keys(*, purpose: str) -> dict[str, PublicKey]:
    """All keys of a `purpose` whose signatures never expire, by `kid`, except disabled ones."""
    return {key.kid: _public(key) for key in select_sealed(Key.giving().filter(purpose=purpose))}


def disabled_keys(*, purpose: str, now: datetime) -> dict[str, tuple[PublicKey, datetime]]:
    """The keys of `purpose` disabled by `now`, with that time, by `kid`.

    Their signatures prove nothing, but must still verify.
    """
    disabled = Key.objects.filter(purpose=purpose, state=Key.State.DISABLED, disabled_at__lte=now)
    return {key.kid: (_public(key), cast("datetime", key.disabled_at)) for key in disabled}


def public_jwks(*, purpose: str, now: datetime) -> dict[str, list[dict[str, str]]]:
    """The JWK Set of the same keys (RFC 7517 section 5), with `kid`, `use` and `alg`."""
    return {
        "keys": [
            _public(key).jwk | {"kid": key.kid, "use": "sig", "alg": key.algorithm}
            for key in _verifying(purpose, now)
        ]
    }


def ensure_key(*, purpose: str, actor: Actor, now: datetime) -> Key:
    """The key that signs or will sign for `purpose`, made if there is none. Idempotent.

    Raises TemporarilyUnavailableError if the backend cannot make one.
    """
    living = Key.objects.filter(purpose=purpose, state__in=_LIVING).order_by("active_from")
    if (key := living.first()) is not None:
        return key
    try:
        return rotate_key(purpose=purpose, actor=actor, now=now)
    except InvalidStateError:
        # Another process made one in between.
        return living.get()


def rotate_key(
    *, purpose: str, actor: Actor, now: datetime, uri: str | None = None, introduced: bool = True
) -> Key:
    """Publish the next key of `purpose`. It signs once every verifier has had time to fetch it.

    A purpose's first key signs at once: no verifier has an older set (docs/protocol.md section 4).
    `uri` names an operator's key, which must pass a test signature; without it, KEY_BACKEND makes
    one. The current key introduces the next; `introduced=False` is for a current key that cannot
    sign.

    Raises InvalidStateError if a next key waits, or the key is on record or unfit for its purpose;
    ValueError for an unknown purpose; TemporarilyUnavailableError if a backend fails.
    """
    if purpose not in Key.Purpose.values:
        raise ValueError(f"unknown key purpose: {purpose}")
    promote_due_keys(now=now)
    _refuse_second_next(purpose)
    first = not Key.objects.filter(purpose=purpose).exists()
    introducer = _introducer(purpose, now) if introduced else None
    # Made before its row: a crash in between leaves a key without a row, never a row without a key.
    at, public = _make_key(uri, purpose)
    with _named_if_in_vain(at, made=uri is None):
        key = Key(
            kid=public.thumbprint,
            purpose=purpose,
            state=Key.State.ACTIVE if first else Key.State.NEXT,
            uri=at,
            algorithm=public.alg,
            public_jwk=public.jwk,
            published_at=now,
            active_from=now if first else now + PUBLISHED_BEFORE_USE,
            introduction=_introduction(introducer, purpose, public, now),
        )
        key.set_seal()
        try:
            with transaction.atomic():
                key.save(force_insert=True)
                publish_change(Subject.KEY, key.kid, now=now)
                _record(
                    kinds.KEY_ACTIVATED if first else kinds.KEY_PUBLISHED, key, actor=actor, now=now
                )
        except IntegrityError:
            raise InvalidStateError(
                f"Another {purpose} key was made at the same time, or this key exists already."
            ) from None
    return key


def rotate_due_keys(*, now: datetime, actor: Actor = SYSTEM) -> int:
    """Rotate each purpose whose newest key was published KEY_ROTATION_DAYS ago; returns how many.

    A failure does not stop the other purposes: the current key goes on signing, and this process
    retries after ROTATE_AGAIN. Raises TemporarilyUnavailableError after all were tried.
    """
    due = []
    for purpose in Key.Purpose.values if settings.KEY_ROTATION_DAYS else []:
        newest = (
            Key.objects.filter(purpose=purpose, state__in=_LIVING).order_by("-published_at").first()
        )
        waits = _ROTATION_FAILED.get(purpose, now) > now
        if (
            newest
            and not waits
            and newest.published_at <= now - timedelta(days=settings.KEY_ROTATION_DAYS)
        ):
            due.append(purpose)
    rotated, failed = 0, None
    for purpose in due:
        try:
            rotate_key(purpose=purpose, actor=actor, now=now)
            rotated += 1
        except InvalidStateError:
            # Another process rotates at this moment.
            continue
        except TemporarilyUnavailableError as error:
            logger.error("the %s key is due for rotation but could not be rotated", purpose)  # noqa: TRY400 — raised below
            failed = error
            _ROTATION_FAILED[purpose] = now + ROTATE_AGAIN
    if failed:
        raise failed
    return rotated


def introductions(*, purpose: str) -> list[str]:
    """Each key's introduction by the previous one, oldest first; none by or of a disabled key."""
    keys = list(Key.objects.filter(purpose=purpose).order_by("published_at", "active_from"))
    disabled = {key.kid for key in keys if key.state == Key.State.DISABLED}
    return [
        key.introduction
        for key in keys
        if key.introduction
        and key.kid not in disabled
        and parse_compact(key.introduction).header["kid"] not in disabled
    ]


def promote_due_keys(*, now: datetime, actor: Actor = SYSTEM) -> int:
    """Record every switch that is due; returns how many. Switches take effect unrecorded."""
    due = Key.objects.filter(state=Key.State.NEXT, active_from__lte=now)
    return sum(_promote(key, actor=actor, now=now) for key in due)


def disable_key(*, kid: str, actor: Actor, now: datetime, even_last: bool = False) -> Key:
    """Refuse everything a key signed, now and permanently, because others may have it.

    Raises NotFoundError, and InvalidStateError if it is disabled already or the last of its purpose
    that can sign (`refuse_to_disable`); `even_last` is for keys disabled before a restore.
    """
    promote_due_keys(now=now)
    with transaction.atomic():
        named = Key.objects.filter(kid=kid).values_list("purpose", flat=True)
        # Lock all keys of the purpose: two administrators could each disable one and leave none.
        keys = list(
            Key.objects.select_for_update(no_key=True).filter(purpose__in=named).order_by("pk")
        )
        key = next((each for each in keys if each.kid == kid), None)
        if key is None:
            raise NotFoundError("There is no key with that name.")
        refuse_to_disable(key, keys, now=now, even_last=even_last)
        key.state, key.disabled_at, key.seal = Key.State.DISABLED, now, None
        key.save(update_fields=["state", "disabled_at", "seal"])
        publish_change(Subject.KEY, key.kid, now=now)
        _record(kinds.KEY_DISABLED, key, actor=actor, now=now)
    return key


def refuse_to_disable(
    key: Key, keys: Iterable[Key], *, now: datetime, even_last: bool = False
) -> None:
    """Raise InvalidStateError if `key` may not be disabled at `now`. `keys`: all of its purpose."""
    if key.state == Key.State.DISABLED:
        raise InvalidStateError("The key is disabled already.")
    others = [each for each in keys if each.pk != key.pk and each.state in _LIVING]
    if even_last or key.state not in _LIVING or any(each.active_from <= now for each in others):
        return
    if following := min(others, key=lambda each: each.active_from, default=None):
        raise InvalidStateError(
            _(
                "This is the only %(purpose)s key that signs now. The next one signs from %(at)s "
                "UTC on: disable this one after that."
            )
            % {"purpose": key.purpose, "at": f"{following.active_from:%Y-%m-%d %H:%M:%S}"}
        )
    raise InvalidStateError(
        _(
            "This is the last %(purpose)s key that can sign. First publish the next one, with "
            "“Publish the next key” in the control room or with %(command)s rotate_key "
            "%(purpose)s. Disable this one once the next key signs, 130 s later."
        )
        % {"purpose": key.purpose, "command": settings.COMMAND}
    )


class _OvertakenError(Exception):
    """Another process recorded the switch first: roll back our half."""


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
            if not Key.objects.filter(pk=key.pk, state=Key.State.NEXT).update(
                state=Key.State.ACTIVE
            ):
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


@contextmanager
def _named_if_in_vain(at: str, *, made: bool) -> Iterator[None]:
    """If a key was made but gets no row, log where it is, so that an operator destroys it."""
    try:
        yield
    except Exception:
        if made:
            logger.error("a key was created but cannot be used: %s", at)  # noqa: TRY400 — raised
        raise


def _make_key(uri: str | None, purpose: str) -> tuple[str, PublicKey]:
    try:
        return _adopt_key(uri, purpose) if uri else backends.create(purpose=purpose)
    except backends.BackendError as error:
        raise _unavailable(error) from error


def _adopt_key(uri: str, purpose: str) -> tuple[str, PublicKey]:
    """An existing key, tested to sign: without a permission, signing would stop at the switch."""
    public = backends.public_key(uri)
    if purpose == Key.Purpose.AUDIT and public.alg != "EdDSA":
        raise InvalidStateError("The log must be signed with an Ed25519 key, and this is not one.")
    try:
        backends.prove(uri, public, purpose=purpose)
    except backends.TooLongError as error:
        raise InvalidStateError(
            f"This key cannot sign messages as long as purpose {purpose} may need. Use a P-256 key."
        ) from error
    return uri, public


def _introducer(purpose: str, now: datetime) -> Signer | None:
    """The current key, tested to sign before another is made: a failed try leaves an unused key."""
    if _present(purpose, now) is None:
        # The first of its purpose, or all earlier ones were disabled.
        return None
    present = signer(purpose=purpose, now=now)
    present.sign(backends.TRIAL)
    return present


def _introduction(
    introducer: Signer | None, purpose: str, following: PublicKey, now: datetime
) -> str:
    if introducer is None:
        return ""
    at = int(now.timestamp())
    return sign_introduction(
        introducer, following, issuer=settings.ISSUER, purpose=purpose, issued_at=at
    )


def _present(purpose: str, now: datetime) -> Key | None:
    for (key,) in _PRESENT.ask(purpose, now):
        if cast("Key", key).fits():
            return cast("Key", key)
    return None


def _verifying(purpose: str, now: datetime) -> list[Key]:
    keys = select_sealed(Key.giving().filter(purpose=purpose).order_by("-active_from", "kid"))
    return [life.key for life in lifetimes(keys, now=now) if life.verifies(now)]


def _record(
    kind: str, key: Key, *, actor: Actor, now: datetime, replaced: str | None = None
) -> None:
    data = {"kid": key.kid, "purpose": key.purpose, "algorithm": key.algorithm}
    record(kind=kind, actor=actor, at=now, data=data | ({"replaced": replaced} if replaced else {}))


@lru_cache(maxsize=_CACHED_KEYS)
def _open_signer(uri: str, public: PublicKey) -> Signer:
    # A URI names one key for ever, so this never goes stale. Failures are not cached.
    return backends.open_signer(uri, public)


def _public(key: Key) -> PublicKey:
    return _parse_public_key(json.dumps(key.public_jwk, sort_keys=True))


@lru_cache(maxsize=_CACHED_KEYS)
def _parse_public_key(jwk: str) -> PublicKey:
    return parse_jwk(json.loads(jwk))


def _unavailable(why: backends.BackendError | str) -> TemporarilyUnavailableError:
    # The operator's log says what is wrong with the key; the caller learns only when to retry.
    if not isinstance(why, backends.CallRejectedError):
        # The outage was logged when it was detected; do not log each call since.
        logger.error("signing is unavailable: %s", why)
    after = why.retry_after if isinstance(why, backends.BackendError) else None
    return TemporarilyUnavailableError(
        "Signing is not available right now. Try again shortly.",
        **({"retry_after": after} if after else {}),
    )
