"""Buffers the counts of the verifier's loop and adds them to the metrics four times a second.

Each addition there takes a lock and writes a mapped file.
"""

import asyncio
from bisect import bisect_left
from collections import Counter
from typing import Final

from agentauth.observability import metrics

FLUSH_SECONDS: Final = 0.25


class Tally:
    """Answers and decisions since the last flush, for one loop's thread; lost if killed."""

    def __init__(self) -> None:
        # By route and status: the count in each bucket, and the sum of the seconds.
        self._requests: dict[tuple[str, int], tuple[Counter[int], list[float]]] = {}
        self._decisions: Counter[tuple[str, str, str]] = Counter()
        self._misses: Counter[str] = Counter()

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count one request answered by the endpoint."""
        found = self._requests.get((route, status))
        if found is None:
            found = self._requests[route, status] = Counter(), [0.0]
        buckets, sums = found
        buckets[bisect_left(metrics.BUCKETS, seconds)] += 1
        sums[0] += seconds

    def decision(self, decision: str, error: str, reason: str) -> None:
        """Count one decision that Redis holds until it is written to the log."""
        self._decisions[decision, error, reason] += 1

    def miss(self, what: str) -> None:
        """Count one lookup of something this process does not hold."""
        self._misses[what] += 1

    def start_flushing(self) -> None:
        """Flush now and every FLUSH_SECONDS, in the running loop."""
        asyncio.get_running_loop().call_later(FLUSH_SECONDS, self.start_flushing)
        self.flush()

    def flush(self) -> None:
        """Add all counts to the metrics."""
        requests, self._requests = self._requests, {}
        decisions, self._decisions = self._decisions, Counter()
        misses, self._misses = self._misses, Counter()
        for (route, status), (buckets, sums) in requests.items():
            metrics.add_requests(
                method="POST", route=route, status=status, buckets=buckets, seconds=sums[0]
            )
        for (decision, error, reason), number in decisions.items():
            metrics.count_decision(decision, error, reason, number)
        for what, number in misses.items():
            metrics.MISSES.labels(what).inc(number)
