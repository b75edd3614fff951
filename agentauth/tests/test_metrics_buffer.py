"""Everything the verifier's loop counted reaches the metrics, in the right buckets."""

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


def test_answers_fall_into_the_buckets_that_the_library_puts_them_into() -> None:
    seconds = [*metrics.BUCKETS, 0.0, 0.0011, 0.3, 100.0]
    counted = Tally()
    for each in seconds:
        counted.request(ROUTE, 200, each)
        metrics.observe_request(method="POST", route=f"{ROUTE}/one", status=200, seconds=each)
    assert bucket("+Inf") == 0
    counted.add_up()
    counted.add_up()

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
    counted = Tally()
    counted.request(f"{ROUTE}/told", 200, 0.0015)
    counted.add_up()
    page = generate_latest(REGISTRY).decode()
    lines = [
        line for line in page.splitlines() if f'route="{ROUTE}/told"' in line and "_bucket{" in line
    ]
    told = {re.findall(r'le="([^"]+)"', line)[0]: line.rpartition(" ")[2] for line in lines}
    wanted = {"0.001": "0.0", "0.002": "1.0", "0.005": "1.0", "0.01": "1.0", "0.02": "1.0"}
    assert told.items() >= wanted.items()


def test_OG_15_what_was_missed_is_in_the_metrics_once() -> None:
    counted = Tally()
    before = REGISTRY.get_sample_value("agentauth_verifier_misses_total", {"what": "token"}) or 0
    for _ in range(3):
        counted.miss("token")
    for _ in range(2):
        counted.add_up()
    assert (
        REGISTRY.get_sample_value("agentauth_verifier_misses_total", {"what": "token"})
        == before + 3
    )


def test_decisions_are_added_up_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_buffer, "ADD_SECONDS", 0.01)
    labels = {"decision": "denied", "error": "tallied", "reason": "twice"}

    async def run() -> float | None:
        counted = Tally()
        counted.begin()
        counted.decision("denied", "tallied", "twice")
        counted.decision("denied", "tallied", "twice")
        await asyncio.sleep(0.2)
        return REGISTRY.get_sample_value("agentauth_decisions_total", labels)

    assert asyncio.run(run()) == 2


def test_a_failure_of_the_metrics_is_not_the_end_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_buffer, "ADD_SECONDS", 0.01)
    labels = {"decision": "denied", "error": "failed", "reason": "once"}

    async def run() -> float | None:
        counted = Tally()
        counted.decision("denied", "failed", "once")
        with monkeypatch.context() as patch:
            patch.setattr(metrics, "count_decision", lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                counted.begin()
        counted.decision("denied", "failed", "once")
        await asyncio.sleep(0.2)
        return REGISTRY.get_sample_value("agentauth_decisions_total", labels)

    # The values being added were lost, later ones were not.
    assert asyncio.run(run()) == 1
