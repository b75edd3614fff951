"""What the verifier's loop counted is in the metrics, all of it, in the buckets it belongs to."""

import asyncio

import pytest
from prometheus_client import REGISTRY

from agentauth import metrics, tally
from agentauth.tally import Tally

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


def test_decisions_are_added_up_by_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tally, "ADD_SECONDS", 0.01)
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
    monkeypatch.setattr(tally, "ADD_SECONDS", 0.01)
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

    # What was being added up is gone, what came after it is not.
    assert asyncio.run(run()) == 1
