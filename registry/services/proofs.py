"""Single use of DPoP proofs at the registry: the database remembers each one until it could not be accepted any more."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from django.db import connection

from audit.statements import Insert, select, written

_INSERT = (
    "INSERT INTO registry_spentproof (digest, expires_at) VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING"
)
# Seen by all at once, on disk with the next commit that waits for the disk: commits reach it in their order.
_INSERT_UNWAITED = (
    "INSERT INTO registry_spentproof (digest, expires_at) SELECT %s, %s FROM set_config('synchronous_commit', 'off', true)"
    " ON CONFLICT (digest) DO NOTHING"
)
_INSERT_MANY = Insert(
    "registry_spentproof",
    "ON CONFLICT (digest) DO NOTHING RETURNING digest",
    digest="bytea",
    expires_at="timestamptz",
)
_FIND = "SELECT digest FROM registry_spentproof WHERE digest = ANY(%s)"


def spend_proof(*, jkt: str, jti: str, until: datetime, waits: bool = True) -> bool:
    """Spend (`jkt`, `jti`) until the aware time `until`; True for the first caller alone, whatever the concurrency.

    `waits`: for the disk. Who does not must commit something else before anything is answered but a failure: a proof
    that the database forgot in a crash would be good once more.

    One statement, so that its outcome is the database's: a refusal that follows never gives the proof back
    (RFC 9449 section 11.1). `until` must be past the proof's last acceptable second.
    """
    digest = _digest(jkt, jti)
    # In a transaction it would be said of all of it.
    if waits or connection.in_atomic_block or connection.vendor != "postgresql":
        return written(_INSERT, digest, until) == 1
    return written(_INSERT_UNWAITED, digest, until) == 1


def spend_proofs(proofs: Sequence[tuple[str, str, int]]) -> list[bool]:
    """`spend_proof` of each (`jkt`, `jti`, end in unix seconds) together; of one that stands there twice the first is new."""
    if not proofs:
        return []
    rows = {_digest(jkt, jti): datetime.fromtimestamp(until, UTC) for jkt, jti, until in proofs}
    # In one order everywhere, so that of two that wait for each other's proofs none waits for the other.
    new = {bytes(digest) for (digest,) in _INSERT_MANY.run(sorted(rows.items()))[0]}
    said = []
    for jkt, jti, _ in proofs:
        said.append((digest := _digest(jkt, jti)) in new)
        new.discard(digest)
    return said


def spent_proofs(proofs: Sequence[tuple[str, str]]) -> list[bool]:
    """Whether each (`jkt`, `jti`) was spent."""
    if not proofs:
        return []
    digests = [_digest(jkt, jti) for jkt, jti in proofs]
    found = {bytes(digest) for (digest,) in select(_FIND, digests)}
    return [digest in found for digest in digests]


def _digest(jkt: str, jti: str) -> bytes:
    return hashlib.sha256(f"{jkt}\x00{jti}".encode()).digest()
