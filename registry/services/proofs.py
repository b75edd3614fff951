"""Single use of DPoP proofs at the registry: the database remembers each one until it could not be accepted any more."""

import hashlib
from datetime import datetime

from audit.statements import written

_INSERT = (
    "INSERT INTO registry_spentproof (digest, expires_at) VALUES (%s, %s) ON CONFLICT (digest) DO NOTHING"
)


def spend_proof(*, jkt: str, jti: str, until: datetime) -> bool:
    """Spend (`jkt`, `jti`) until the aware time `until`; True for the first caller alone, whatever the concurrency.

    One statement, so that its outcome is the database's: a refusal that follows never gives the proof back
    (RFC 9449 section 11.1). `until` must be past the proof's last acceptable second.
    """
    digest = hashlib.sha256(f"{jkt}\x00{jti}".encode()).digest()
    return written(_INSERT, digest, until) == 1
