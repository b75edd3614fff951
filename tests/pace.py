"""How long something may take: as promised in the campaign, which is alone on its machine, and far longer elsewhere."""

from tests.conftest import CAMPAIGN

# Beside other work everything may take so many times as long, and at least this much (s): what hangs takes longer still.
_TIMES, _LEAST_SECONDS = 10, 10.0


def within(seconds: float) -> float:
    """The promised time in the campaign; elsewhere one that only what hangs exceeds. Both in seconds.

    `tests.run campaign` runs each file that asks this, on PostgreSQL.
    """
    return seconds if CAMPAIGN else max(_TIMES * seconds, _LEAST_SECONDS)
