"""The registry's replay cache: the database keeps each spent DPoP proof until it has expired."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from django.db import connection

from audit.db.prebuilt_sql import Insert, execute, select

_INSERT = (
    "INSERT INTO registry_spentproof (digest, expires_at) VALUES (%s, %s) ON CONFLICT (digest) DO "
    "NOTHING"
)
# Visible to all at once; on disk with the next commit that waits for the disk, because commits
# reach the disk in order.
_INSERT_UNWAITED = (
    "INSERT INTO registry_spentproof (digest, expires_at) SELECT %s, %s FROM "
    "set_config('synchronous_commit', 'off', true)"
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
    """Spend (`jkt`, `jti`) until the aware time `until`. True only for the first of all callers.

    Without `waits`, does not wait for the disk. The caller must then commit something else before
    it answers anything but a failure: if a crash lost the proof, it could be used again.

    One statement, so that the database decides which caller is first; a refusal that follows never
    gives the proof back (RFC 9449 section 11.1). `until` must be past the proof's last acceptable
    second.
    """
    digest = _digest(jkt, jti)
    # Inside a transaction, the setting would apply to all of it.
    if waits or connection.in_atomic_block or connection.vendor != "postgresql":
        return execute(_INSERT, digest, until) == 1
    return execute(_INSERT_UNWAITED, digest, until) == 1


def spend_proofs(proofs: Sequence[tuple[str, str, int]]) -> list[bool]:
    """`spend_proof` of several (`jkt`, `jti`, unix seconds); of duplicates the first is new."""
    if not proofs:
        return []
    rows = {_digest(jkt, jti): datetime.fromtimestamp(until, UTC) for jkt, jti, until in proofs}
    # In the same order everywhere, so that parallel calls with the same proofs cannot deadlock.
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
