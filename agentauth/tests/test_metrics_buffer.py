"""The counts of the verifier's loop reach the metrics, once and in the right buckets."""

import asyncio
import re

import pytest
from prometheus_client import REGISTRY, generate_latest

from agentauth.observability import metrics, metrics_buffer
from agentauth.observability.metrics_buffer import Tally

ROUTE = "/v1/tallied"


def bucket(le: str) -> float:
    labels = {"method": "POST", "route": ROUTE, "status": "200", "le": le}
    return REGISTRY.get_sample_value("agentauth_http_request_seconds_bucket", labels) or 0


def test_buffered_requests_fall_into_the_librarys_buckets() -> None:
    seconds = [*metrics.BUCKETS, 0.0, 0.0011, 0.3, 100.0]
    tally = Tally()
    for each in seconds:
        tally.request(ROUTE, 200, each)
        metrics.observe_request(method="POST", route=f"{ROUTE}/one", status=200, seconds=each)
    assert bucket("+Inf") == 0
    tally.flush()
    tally.flush()

    def series(route: str) -> dict[str, float]:
        found = (sample for family in metrics.REQUESTS.collect() for sample in family.samples)
        return {
            f"{each.name} {each.labels.get('le')}": each.value
            for each in found
            if each.labels["route"] == route and not each.name.endswith("_created")
        }

    assert series(ROUTE) == pytest.approx(series(f"{ROUTE}/one"))
    assert bucket("+Inf") == len(seconds)


def test_latency_buckets_resolve_the_promised_milliseconds() -> None:
    """These buckets show whether the verifier meets its latency goal, so they are repeated here."""
    tally = Tally()
    tally.request(f"{ROUTE}/told", 200, 0.0015)
    tally.flush()
    page = generate_latest(REGISTRY).decode()
    lines = [
        line for line in page.splitlines() if f'route="{ROUTE}/told"' in line and "_bucket{" in line
    ]
    told = {re.findall(r'le="([^"]+)"', line)[0]: line.rpartition(" ")[2] for line in lines}
    wanted = {"0.001": "0.0", "0.002": "1.0", "0.005": "1.0", "0.01": "1.0", "0.02": "1.0"}
    assert told.items() >= wanted.items()


def test_OG_15_cache_misses_are_counted_once() -> None:
    tally = Tally()
    before = REGISTRY.get_sample_value("agentauth_verifier_misses_total", {"what": "token"}) or 0
    for _ in range(3):
        tally.miss("token")
    for _ in range(2):
        tally.flush()
    assert (
        REGISTRY.get_sample_value("agentauth_verifier_misses_total", {"what": "token"})
        == before + 3
    )


def test_counts_are_flushed_periodically(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_buffer, "FLUSH_SECONDS", 0.01)
    labels = {"decision": "denied", "error": "tallied", "reason": "twice"}

    async def run() -> float | None:
        tally = Tally()
        tally.start_flushing()
        tally.decision("denied", "tallied", "twice")
        tally.decision("denied", "tallied", "twice")
        await asyncio.sleep(0.2)
        return REGISTRY.get_sample_value("agentauth_decisions_total", labels)

    assert asyncio.run(run()) == 2


def test_flushing_continues_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_buffer, "FLUSH_SECONDS", 0.01)
    labels = {"decision": "denied", "error": "failed", "reason": "once"}

    async def run() -> float | None:
        tally = Tally()
        tally.decision("denied", "failed", "once")
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "count_decision", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                tally.start_flushing()
        tally.decision("denied", "failed", "once")
        await asyncio.sleep(0.2)
        return REGISTRY.get_sample_value("agentauth_decisions_total", labels)

    # The counts of the failed flush are lost, later ones are not.
    assert asyncio.run(run()) == 1
