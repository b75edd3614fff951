"""Single use of DPoP proofs at the registry: the database remembers each one until it could not be accepted any more."""

import hashlib
from datetime import datetime

from django.db import connection

from audit.statements import written

_INSERT = (
    "INSERT INTO registry_spentproof (digest, expires_at) VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING"
)
# Seen by all at once, on disk with the next commit that waits for the disk: commits reach it in their order.
_INSERT_UNWAITED = (
    "INSERT INTO registry_spentproof (digest, expires_at) SELECT %s, %s FROM set_config('synchronous_commit', 'off', true)"
    " ON CONFLICT (digest) DO NOTHING"
)


def spend_proof(*, jkt: str, jti: str, until: datetime, waits: bool = True) -> bool:
    """Spend (`jkt`, `jti`) until the aware time `until`; True for the first caller alone, whatever the concurrency.

    `waits`: for the disk. Who does not must commit something else before anything is answered but a failure: a proof
    that the database forgot in a crash would be good once more.

    One statement, so that its outcome is the database's: a refusal that follows never gives the proof back
    (RFC 9449 section 11.1). `until` must be past the proof's last acceptable second.
    """
    digest = hashlib.sha256(f"{jkt}\x00{jti}".encode()).digest()
    # In a transaction it would be said of all of it.
    if waits or connection.in_atomic_block or connection.vendor != "postgresql":
        return written(_INSERT, digest, until) == 1
    return written(_INSERT_UNWAITED, digest, until) == 1
