"""Time limits: as promised in the campaign, alone on its machine; far longer elsewhere."""

from tests.conftest import CAMPAIGN

# Beside other work everything may take this many times as long, and at least this many seconds; a
# hang takes longer still.
_TIMES, _LEAST_SECONDS = 10, 10.0

# Of a call, a start or an end: longer is a hang, on a busy machine too.
HANGS_SECONDS = 60


def within(seconds: float) -> float:
    """The promised time in the campaign; elsewhere a time that only a hang exceeds. In seconds.

    `tests.run campaign` runs each file that calls this, on PostgreSQL.
    """
    return seconds if CAMPAIGN else max(_TIMES * seconds, _LEAST_SECONDS)
