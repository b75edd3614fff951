"""Where row ids are minted: UUIDv7 from the clock and the system's randomness. Their layout is in the protocol."""

import os
import time
import uuid

from agentauth.protocol.identifiers import uuid7

_NANOSECONDS_PER_MILLISECOND = 1_000_000
_ENTROPY_BYTES = 10


def new_id() -> uuid.UUID:
    """A fresh UUIDv7; ids of one process rise with the clock to the millisecond, no further order is promised."""
    return uuid7(time.time_ns() // _NANOSECONDS_PER_MILLISECOND, os.urandom(_ENTROPY_BYTES))
