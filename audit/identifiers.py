"""Where row ids are minted: UUIDv7 from the clock and the system's randomness. Their layout is in the protocol."""

import os
import time
import uuid
from functools import lru_cache

from agentauth.protocol.identifiers import uuid7_text

_NANOSECONDS_PER_MILLISECOND = 1_000_000
_ENTROPY_BYTES = 10


# An id as it is written, made once for as long as it is in use.
id_text = lru_cache(maxsize=16_384)(str)


def new_id() -> uuid.UUID:
    """A fresh UUIDv7; ids of one process rise with the clock to the millisecond, no further order is promised."""
    return uuid.UUID(new_id_text())


def new_id_text() -> str:
    """`new_id` as it is written."""
    return uuid7_text(time.time_ns() // _NANOSECONDS_PER_MILLISECOND, os.urandom(_ENTROPY_BYTES))


def made_at(made: uuid.UUID) -> float:
    """When the id was made, in seconds since 1970, to the millisecond."""
    return (made.int >> 80) / 1000
