"""Rate limits against abuse: one table of limits, counted in the memory of each server process.

Soft by design, and no security property depends on them: a counter in the database would cost a
write per call. Each of `WEB_CONCURRENCY` processes gives out its share of a limit. So a host keeps
the limit, a caller whose connection stays with one process gets only the share, a restart resets
the counters, and hosts count separately. What must hold exactly (uses, budgets, guesses of a code)
is counted in the database by its own service.
"""

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache

from django.conf import settings

from agentauth.protocol.errors import RateLimitedError

# Callers remembered at once, of each sort: a few megabytes in all. A caller that is evicted early
# has its full allowance again.
MAX_REMEMBERED = 20_000


@dataclass(frozen=True, slots=True)
class Limit:
    """`burst` calls at once, then `per_minute` in the long run."""

    per_minute: int
    burst: int


# Callers that proved nothing: public documents, pages without a session, refused credentials. By
# address.
ADDRESS = "address"
# The most expensive entry points: registration, sign-in, setup and claim ceremonies of strangers.
# By address.
ENTRY = "entry"
# All callers of the host that prove nothing, together, so that a flood from many addresses is
# bounded too. Counted by the keys below.
STRANGERS = "strangers"
AGENT = "agent"
HUMAN = "human"
SERVICE_PROVIDER = "service_provider"
# Keys of STRANGERS, separate so that a flood of one kind blocks no other: calls with invalid
# credentials, registrations, and, at the verifier's own processes, where nothing is public, calls
# without credentials.
CREDENTIALS = "credentials"
REGISTRATIONS = "registrations"
NAMELESS = "nameless"


def limits() -> dict[str, Limit]:
    """The table. Generous: a caller that reaches a limit is broken or hostile."""
    verify = settings.SERVICE_PROVIDER_CALLS_PER_MINUTE
    return {
        ADDRESS: Limit(per_minute=1200, burst=600),
        ENTRY: Limit(per_minute=120, burst=60),
        # In Django a refusal takes 5 ms of CPU, a registration 15 ms: at 5 a second, at most a
        # twelfth of one core.
        STRANGERS: Limit(per_minute=300, burst=300),
        AGENT: Limit(per_minute=1200, burst=600),
        HUMAN: Limit(per_minute=1200, burst=600),
        SERVICE_PROVIDER: Limit(per_minute=verify, burst=max(1, verify // 6)),
    }


class Limiter:
    """GCRA over monotonic seconds: one number per key, when its allowance is full again."""

    def __init__(self, limit: Limit, *, share: int) -> None:
        self._interval = 60 * share / limit.per_minute
        self._slack = self._interval * (max(1, limit.burst // share) - 1)
        self._whole_at: OrderedDict[str, float] = OrderedDict()
        self._lock = threading.Lock()

    def wait(self, key: str, *, now: float) -> float:
        """Seconds until the key may call; 0 if now. Counts nothing."""
        return max(0.0, self._whole_at.get(key, now) - self._slack - now)

    def take(self, key: str, *, now: float) -> float:
        """As `wait`; where that is 0, the call is counted."""
        with self._lock:
            whole_at = self._whole_at.get(key, now)
            wait = whole_at - self._slack - now
            if wait > 0:
                return wait
            self._keep(key, max(now, whole_at) + self._interval)
        return 0.0

    def charge(self, key: str, calls: int, *, now: float) -> None:
        """Count calls that were admitted already, even beyond the limit; later ones wait."""
        with self._lock:
            self._keep(key, max(now, self._whole_at.get(key, now)) + calls * self._interval)

    def _keep(self, key: str, whole_at: float) -> None:
        self._whole_at[key] = whole_at
        self._whole_at.move_to_end(key)
        if len(self._whole_at) > MAX_REMEMBERED:
            self._whole_at.popitem(last=False)


def wait(sort: str, key: str) -> float:
    """Seconds until `take` would accept a call of this caller; 0 if now."""
    return limiter(sort).wait(key, now=time.monotonic()) if settings.RATE_LIMITED else 0.0


def check(sort: str, key: str) -> None:
    """Raises RateLimitedError if `take` would; counts nothing."""
    if seconds := wait(sort, key):
        raise limit_error(seconds)


def take(sort: str, key: str) -> None:
    """Count one call. Raises RateLimitedError, and counts nothing, if the allowance is used up."""
    if settings.RATE_LIMITED and (seconds := limiter(sort).take(key, now=time.monotonic())):
        raise limit_error(seconds)


def charge(sort: str, key: str, calls: int) -> None:
    """Count the further calls inside one admitted call; none of them is refused any more."""
    if settings.RATE_LIMITED:
        limiter(sort).charge(key, calls, now=time.monotonic())


@lru_cache(maxsize=8)
def limiter(sort: str) -> Limiter:
    """This process's limiter for one sort of caller."""
    return Limiter(limits()[sort], share=settings.WEB_CONCURRENCY)


def limit_error(seconds: float) -> RateLimitedError:
    """The error for a caller that may call again in `seconds`."""
    return RateLimitedError(
        "Too many calls. Wait, then call less often.", retry_after=int(seconds) + 1
    )
