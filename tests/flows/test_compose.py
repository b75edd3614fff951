"""deploy/compose.yaml starts a registry: its own commands, settings, files and order, as processes.

tests/compose.py says what replaces the containers, and what does not run.
"""

import re
import ssl
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.compose import NOT_RUN, Stack, running
from tests.faults.stage import until

pytestmark = [
    pytest.mark.flow,
    pytest.mark.compose,
    pytest.mark.postgres,
    pytest.mark.redis,
    pytest.mark.nginx,
    pytest.mark.pgbouncer,
    pytest.mark.prometheus,
]


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    with running() as made:
        yield made


@pytest.fixture
def http(stack: Stack) -> Iterator[httpx.Client]:
    trust = ssl.create_default_context(cafile=stack.authority)
    with httpx.Client(base_url=stack.url, verify=trust, timeout=30) as client:
        yield client


def test_it_is_ready_through_the_proxy(stack: Stack, http: httpx.Client) -> None:
    ready = http.get("/health/ready")
    assert (ready.status_code, set(ready.json()["checks"].values())) == (200, {"ok"})
    assert http.get("/sign-in/").status_code == 200
    # The verifier's own process answers this.
    assert http.post("/v1/verify").status_code == 401
    assert stack.running.keys() | {"postgres"} | NOT_RUN == stack.services.keys()


def test_only_the_first_administrator_is_missing(stack: Stack) -> None:
    done = stack.manage("jobs", "check", "--deploy")
    assert re.findall(r"agentauth\.([EW]\d+)", done.stderr) == ["E049"], done.stderr


def test_prometheus_scrapes_each_process(stack: Stack) -> None:
    def states() -> dict[str, str]:
        told: Any = httpx.get(f"http://127.0.0.1:{stack.ports['prometheus']}/api/v1/targets").json()
        active = told["data"]["activeTargets"]
        return {each["labels"]["process"]: each["health"] for each in active}

    until(
        lambda: states() == dict.fromkeys(("web", "verifier", "jobs"), "up"), "not all are up", 60
    )
