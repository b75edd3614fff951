"""What a key may do at a given moment, computed from its times. Pure: no database, no clock."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from agentauth.protocol.token import MAX_TOKEN_SECONDS
from kms.models import Key

# How long a key is in the key set before it signs: four times the set's max-age (section 4 promises
# 120 s), and 10 s for the commit and for differences between servers' clocks.
PUBLISHED_BEFORE_USE = timedelta(seconds=120 + 10)
# A server whose clock lags may sign a token this long after the switch.
CLOCK_SKEW = timedelta(seconds=60)
# How long keys certified by a retired key may sign on, so that processes can have new ones
# certified.
HANDOVER = timedelta(seconds=240)
TOKEN_OVERLAP = timedelta(seconds=MAX_TOKEN_SECONDS) + CLOCK_SKEW + HANDOVER


@dataclass(frozen=True, slots=True)
class Lifetime:
    """A key's state at one moment, whether or not a job has recorded it."""

    key: Key
    state: str
    retired_at: datetime | None
    needed_until: datetime | None

    def verifies(self, now: datetime) -> bool:
        """Whether its signatures count: published, not disabled, and still needed."""
        if self.state == Key.State.RETIRED:
            return self.needed_until is None or now < self.needed_until
        return self.state in {Key.State.NEXT, Key.State.ACTIVE}


def lifetimes(keys: Iterable[Key], *, now: datetime) -> list[Lifetime]:
    """The state of each key of one purpose at `now`, in the order given.

    The newest key whose `active_from` has passed signs. One still recorded as active was retired
    then.
    """
    keys = list(keys)
    living = [
        key
        for key in keys
        if key.state in {Key.State.NEXT, Key.State.ACTIVE} and key.active_from <= now
    ]
    active = max(living, key=lambda key: key.active_from, default=None)
    return [_lifetime(key, active, now) for key in keys]


def needed_until(purpose: str, retired_at: datetime) -> datetime | None:
    """When the last signature of a key retired at `retired_at` expires; None means never.

    Tokens expire. Receipts and checkpoints are evidence, so their keys never stop verifying.
    """
    return retired_at + TOKEN_OVERLAP if purpose == Key.Purpose.TOKEN else None


def _lifetime(key: Key, active: Key | None, now: datetime) -> Lifetime:
    if key.state in {Key.State.RETIRED, Key.State.DISABLED}:
        return Lifetime(key, key.state, key.retired_at, key.needed_until)
    if key.active_from > now:
        return Lifetime(key, Key.State.NEXT, None, None)
    if active is None or key == active:
        return Lifetime(key, Key.State.ACTIVE, None, None)
    return Lifetime(
        key, Key.State.RETIRED, active.active_from, needed_until(key.purpose, active.active_from)
    )
