"""What a key may do at a given moment, from its times alone. Pure: no database, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agentauth.protocol.token import MAX_TOKEN_SECONDS
from kms.models import Key

# How long a key is in the key set before it signs: four times the set's max-age (section 4 promises 120 s), and
# ten more for the commit and for the clocks of several servers.
PUBLISHED_BEFORE_USE = timedelta(seconds=120 + 10)
# A token signed in the last moment before the switch, by a server whose clock lags, still lives this long.
CLOCK_SKEW = timedelta(seconds=60)
# What a retired key certified may sign on for this long: processes need the time to have the next certify another.
HANDOVER = timedelta(seconds=240)
TOKEN_OVERLAP = timedelta(seconds=MAX_TOKEN_SECONDS) + CLOCK_SKEW + HANDOVER


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A key's state at one moment, whatever a job has recorded so far."""

    key: Key
    state: str
    retired_at: datetime | None
    needed_until: datetime | None

    def verifies(self, now: datetime) -> bool:
        """Whether its signatures still count: published, not disabled, and not past the end of what it signed."""
        if self.state == Key.State.RETIRED:
            return self.needed_until is None or now < self.needed_until
        return self.state in {Key.State.NEXT, Key.State.ACTIVE}


def lifetimes(keys: Iterable[Key], *, now: datetime) -> list[Lifetime]:
    """The state of each key of one purpose at `now`, in the order given.

    The newest key whose time has come signs; one recorded as active beside it was retired at that moment.
    """
    keys = list(keys)
    living = [
        key for key in keys if key.state in {Key.State.NEXT, Key.State.ACTIVE} and key.active_from <= now
    ]
    active = max(living, key=lambda key: key.active_from, default=None)
    return [_lifetime(key, active, now) for key in keys]


def needed_until(purpose: str, retired_at: datetime) -> datetime | None:
    """The end of the last signature of a key retired at `retired_at`; None is for ever.

    Tokens die by themselves. Receipts and checkpoints are evidence: their keys verify as long as anyone asks.
    """
    return retired_at + TOKEN_OVERLAP if purpose == Key.Purpose.TOKEN else None


def _lifetime(key: Key, active: Key | None, now: datetime) -> Lifetime:
    if key.state in {Key.State.RETIRED, Key.State.DISABLED}:
        return Lifetime(key, key.state, key.retired_at, key.needed_until)
    if key.active_from > now:
        return Lifetime(key, Key.State.NEXT, None, None)
    if active is None or key == active:
        return Lifetime(key, Key.State.ACTIVE, None, None)
    return Lifetime(key, Key.State.RETIRED, active.active_from, needed_until(key.purpose, active.active_from))
