"""Keys held by one process and certified by a token key: made, published, revoked and verified."""

import logging
import os
import re
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings
from django.db import transaction

from agentauth.protocol.errors import (
    InvalidRequestError,
    InvalidStateError,
    NotFoundError,
    TemporarilyUnavailableError,
)
from agentauth.protocol.identifiers import is_id
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.process_key_certificate import sign_certificate, verify_certificate
from agentauth.protocol.token import CertifiedKey, TokenKey
from audit import kinds
from audit.new_ids import new_id
from audit.services import SYSTEM, Actor, record
from kms.lifetimes import PUBLISHED_BEFORE_USE
from kms.models import Key, KeyCertificate
from kms.services import public_jwks, signer, verification_keys
from kms.state_change_publisher import Subject, publish_change

logger = logging.getLogger(__name__)

# Short, so that the key of a dead process soon expires; long enough to outlast an outage of the
# KMS.
CERTIFIED_FOR = timedelta(hours=2)
# A process has two or three. Beyond this, as when processes keep dying, the token key itself signs.
MOST_PER_PROCESS = 16
# How long an expired certificate stays in the table. The log keeps its event permanently.
_KEPT_FOR = timedelta(days=1)


def host_name() -> str:
    """This host's name as used in certificates. Each host of a registry needs a name of its own."""
    return re.sub(r"[^A-Za-z0-9._-]", "-", os.uname().nodename)[:64] or "-"


def certify(
    public: PublicKey, *, process: int, actor: Actor = SYSTEM, now: datetime
) -> KeyCertificate:
    """Certify `public`, an Ed25519 key of process number `process` on this host, and publish it.

    The current token key signs the certificate. The certified key may sign from `usable_from` on.
    Raises TemporarilyUnavailableError if no key can certify, or if this host already has
    MOST_PER_PROCESS × WEB_CONCURRENCY valid ones.
    """
    host = host_name()
    living = KeyCertificate.objects.filter(instance__startswith=f"{host}:", not_after__gt=now)
    if (
        living.exclude(state=KeyCertificate.State.REVOKED).count()
        >= MOST_PER_PROCESS * settings.WEB_CONCURRENCY
    ):
        raise TemporarilyUnavailableError("This host has as many certified keys as it may have.")
    issuer = signer(purpose=Key.Purpose.TOKEN, now=now)
    serial = new_id()
    begin = int(now.timestamp())
    row = KeyCertificate(
        serial=serial,
        kid=public.thumbprint,
        issuer=Key.objects.get(kid=issuer.kid),
        state=KeyCertificate.State.CERTIFIED,
        instance=f"{host}:{process}",
        not_before=datetime.fromtimestamp(begin, tz=now.tzinfo),
        not_after=datetime.fromtimestamp(begin, tz=now.tzinfo) + CERTIFIED_FOR,
        usable_from=now + PUBLISHED_BEFORE_USE,
    )
    row.jws = sign_certificate(
        issuer,
        public,
        issuer=settings.ISSUER,
        serial=str(serial),
        instance=row.instance,
        not_before=begin,
        not_after=int(row.not_after.timestamp()),
    )
    with transaction.atomic():
        row.save(force_insert=True)
        KeyCertificate.objects.filter(not_after__lt=now - _KEPT_FOR).delete()
        publish_change(Subject.KEY, row.kid, now=now)
        _record(kinds.KEY_CERTIFIED, row, actor=actor, now=now)
    return row


def revoke_certificate(*, serial: str, actor: Actor, now: datetime) -> KeyCertificate:
    """Refuse everything the key signed, now and permanently.

    Raises NotFoundError and InvalidStateError.
    """
    with transaction.atomic():
        named = (
            KeyCertificate.objects.filter(serial=serial)
            if is_id(serial)
            else KeyCertificate.objects.none()
        )
        swapped = named.exclude(state=KeyCertificate.State.REVOKED).update(
            state=KeyCertificate.State.REVOKED, revoked_at=now
        )
        row = named.select_related("issuer").first()
        if row is None:
            raise NotFoundError("There is no certificate with that serial.")
        if not swapped:
            raise InvalidStateError("The certificate is revoked already.")
        publish_change(Subject.KEY, row.kid, now=now)
        _record(kinds.KEY_CERTIFICATE_REVOKED, row, actor=actor, now=now)
    return row


def token_keys(*, now: datetime) -> dict[str, TokenKey]:
    """The keys that verify tokens at `now`, by `kid`: token keys, and keys they certified."""
    keys = verification_keys(purpose=Key.Purpose.TOKEN, now=now)
    return {kid: certified for kid, (certified, _) in _find_certified(keys, now).items()} | keys


def token_jwks(*, now: datetime) -> dict[str, list[dict[str, str]]]:
    """The JWK Set of these keys (docs/protocol.md section 4), certified ones with `certificate`."""
    keys = verification_keys(purpose=Key.Purpose.TOKEN, now=now)
    own = public_jwks(purpose=Key.Purpose.TOKEN, now=now)["keys"]
    return {
        "keys": own
        + [
            certified.key.jwk
            | {"kid": kid, "use": "sig", "alg": certified.key.alg, "certificate": jws}
            for kid, (certified, jws) in _find_certified(keys, now).items()
        ]
    }


def _find_certified(
    keys: dict[str, PublicKey], now: datetime
) -> dict[str, tuple[CertifiedKey, str]]:
    rows = KeyCertificate.objects.filter(state=KeyCertificate.State.CERTIFIED, not_after__gt=now)
    found = {}
    for kid, by, jws in rows.order_by("serial").values_list("kid", "issuer__kid", "jws"):
        # A certificate counts no longer than the key that signed it.
        certified = _verify_certificate(jws, by, keys[by], settings.ISSUER) if by in keys else None
        if certified is not None and certified.key.thumbprint == kid:
            found[kid] = (certified, jws)
    return found


@lru_cache(maxsize=4096)
def _verify_certificate(
    jws: str, by: str, issuer_key: PublicKey, issuer: str
) -> CertifiedKey | None:
    """Verify a certificate, once per text.

    The row alone proves nothing: others may have changed it.
    """
    try:
        return verify_certificate(jws, keys={by: issuer_key}, expected_issuer=issuer).key
    except InvalidRequestError:
        logger.exception("a certificate by the key %s does not verify", by)
        return None


def _record(kind: str, row: KeyCertificate, *, actor: Actor, now: datetime) -> None:
    data: dict[str, Any] = {
        "serial": str(row.serial),
        "kid": row.kid,
        "issuer_kid": row.issuer.kid,
        "instance": row.instance,
        "exp": int(row.not_after.timestamp()),
    }
    record(kind=kind, actor=actor, at=now, data=data)
