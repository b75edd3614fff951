"""How often one caller may call: one table of fixed limits against abuse, counted in the memory of each server process.

Soft by design, and no security promise rests on it: a counter in the database would be a write for every call. Each of
`WEB_CONCURRENCY` processes gives out its share, so a host keeps the limit, a caller whose connection stays with one process
meets the share, a restart forgets, and hosts count apart. What must hold exactly (uses, budgets, guesses of a code) is
counted in the database by its own service.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from agentauth.protocol.errors import RateLimitedError

# Callers remembered at once, of each sort: some megabytes in all. Who is forgotten early starts afresh.
MAX_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` calls at once, then `per_minute` in the long run."""

    per_minute: int
    burst: int


# Whoever proved nothing: public documents, pages without a session, credentials that were refused. By address.
ADDRESS = "address"
# The beginnings that cost us most: registration, sign-in, setup and claim ceremonies of strangers. By address.
ENTRY = "entry"
# All callers of the host that prove nothing, together, so that a flood from many addresses is bounded too. Counted by
# the keys below.
STRANGERS = "strangers"
AGENT = "agent"
HUMAN = "human"
SERVICE_PROVIDER = "service_provider"
# Keys of STRANGERS, apart so that a flood of one kind stops no other: calls whose credentials do not hold, registrations,
# and at the verifier's own processes, where nothing is public, calls without credentials.
CREDENTIALS = "credentials"
REGISTRATIONS = "registrations"
NAMELESS = "nameless"


def limits() -> dict[str, Limit]:
    """The table. Generous: who meets a limit is broken or hostile."""
    verify = settings.SERVICE_PROVIDER_CALLS_PER_MINUTE
    return {
        ADDRESS: Limit(per_minute=1200, burst=600),
        ENTRY: Limit(per_minute=120, burst=60),
        # A refusal takes Django 5 ms of CPU, a registration 15: 5 a second are at most a twelfth of one core.
        STRANGERS: Limit(per_minute=300, burst=300),
        AGENT: Limit(per_minute=1200, burst=600),
        HUMAN: Limit(per_minute=1200, burst=600),
        SERVICE_PROVIDER: Limit(per_minute=verify, burst=max(1, verify // 6)),
    }


class Limiter:
    """GCRA over monotonic seconds: per key one number, the moment at which its allowance is whole again."""

    def __init__(self, limit: Limit, *, share: int) -> None:
        self._interval = 60 * share / limit.per_minute
        self._slack = self._interval * (max(1, limit.burst // share) - 1)
        self._whole_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str, *, now: float) -> float:
        """Seconds until the key may call; 0 if now. Takes nothing."""
        return max(0.0, self._whole_at.get(key, now) - self._slack - now)

    def take(self, key: str, *, now: float) -> float:
        """As `wait`, and where that is 0 the call is counted."""
        with self._lock:
            whole_at = self._whole_at.get(key, now)
            wait = whole_at - self._slack - now
            if wait > 0:
                return wait
            self._keep(key, max(now, whole_at) + self._interval)
        return 0.0

    def charge(self, key: str, calls: int, *, now: float) -> None:
        """Count calls that are let in already, whatever is left: the next ones wait for them too."""
        with self._lock:
            self._keep(key, max(now, self._whole_at.get(key, now)) + calls * self._interval)

    def _keep(self, key: str, whole_at: float) -> None:
        self._whole_at[key] = whole_at
        self._whole_at.move_to_end(key)
        if len(self._whole_at) > MAX_REMEMBERED:
            self._whole_at.popitem(last=False)


def wait(sort: str, key: str) -> float:
    """Seconds until `take` would count a call of this caller; 0 if now."""
    return limiter(sort).wait(key, now=time.monotonic()) if settings.RATE_LIMITED else 0.0


def check(sort: str, key: str) -> None:
    """Raises RateLimitedError where `take` would, and counts nothing."""
    if seconds := wait(sort, key):
        raise limited(seconds)


def take(sort: str, key: str) -> None:
    """Count one call of this caller. Raises RateLimitedError when the allowance is used up; then nothing is counted."""
    if settings.RATE_LIMITED and (seconds := limiter(sort).take(key, now=time.monotonic())):
        raise limited(seconds)


def charge(sort: str, key: str, calls: int) -> None:
    """Count further calls of a caller whose call was let in and holds several; none of them is refused any more."""
    if settings.RATE_LIMITED:
        limiter(sort).charge(key, calls, now=time.monotonic())


@lru_cache(maxsize=8)
def limiter(sort: str) -> Limiter:
    """This process's counters of one sort of caller."""
    return Limiter(limits()[sort], share=settings.WEB_CONCURRENCY)


def limited(seconds: float) -> RateLimitedError:
    """The error for a caller that may call again in so many seconds."""
    return RateLimitedError("Too many calls. Wait, then go on more slowly.", retry_after=int(seconds) + 1)
