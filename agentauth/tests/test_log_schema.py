"""docs/logs.md names each member of the JSON lines that real requests and jobs write."""

import io
import json
import logging
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest
from django.test import Client

from agentauth.job_table import Job
from agentauth.observability import tracing
from agentauth.observability.logging_config import JsonFormatter, logging_config
from registry.tests.cast import AgentClient
from tests.live import ROOT
from tests.otlp_receiver import Collector
from tests.otlp_receiver import receiver as receiver  # noqa: PLC0414 — a fixture

pytestmark = pytest.mark.django_db
PAGE = (ROOT / "docs/logs.md").read_text()
# Member, type, when.
MEMBERS: list[tuple[str, str, str]] = re.findall(
    r"^\| `(\w+)` \| (string|integer|number) \| ([^|]+) \|", PAGE, re.MULTILINE
)
TYPES = {"string": str, "integer": int, "number": float}
REQUESTS = "agentauth.requests"


@pytest.fixture
def written(caplog: pytest.LogCaptureFixture) -> Iterator[io.StringIO]:
    """All lines of this process, as production writes them."""
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    caplog.set_level(logging.INFO, REQUESTS)
    logging.getLogger().addHandler(handler)
    yield lines
    logging.getLogger().removeHandler(handler)


def when(condition: str) -> set[str]:
    return {name for name, _, told in MEMBERS if told == condition}


def test_every_member_of_a_line_is_documented_and_every_one_is_written(
    written: io.StringIO, receiver: Collector, agent: AgentClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise OSError("no more disk")

    agent.call("GET", "/v1/agents/me")
    tracing.start("web")
    client = Client(raise_request_exception=False)
    client.get("/nowhere")
    monkeypatch.setattr("agentauth.middleware.RateLimitMiddleware.count", fails)
    assert client.get("/sign-in/").status_code == 500

    def warns(*, now: datetime) -> None:
        logging.getLogger("audit.services").warning("a job says this")

    monkeypatch.setattr("agentauth.job_table.may_act", lambda: True)
    Job(warns, 1.0).do()
    tracing.stop()
    logging.getLogger("audit.services").warning("outside of all")
    lines = [json.loads(line) for line in written.getvalue().splitlines()]
    for line in lines:
        check(line)
    assert {name for line in lines for name in line} == {name for name, *_ in MEMBERS}
    said = {line["message"]: line for line in lines}
    assert "request_id" not in said["a job says this"]
    assert said["a job says this"].keys() == when("always") | {"trace_id"}
    assert said["outside of all"].keys() == when("always")
    assert said["unhandled error in a middleware"].keys() >= {"request_id", "exception"}


def check(line: dict[str, Any]) -> None:
    types = {name: TYPES[kind] for name, kind, _ in MEMBERS}
    assert {name: type(value) for name, value in line.items()} == {
        name: types[name] for name in line
    }
    assert when("always") <= line.keys()
    of_requests = when("request lines") & line.keys()
    assert of_requests == (when("request lines") if line["logger"] == REQUESTS else set())
    assert line["level"] in {"debug", "info", "warning", "error", "critical"}
    assert datetime.fromisoformat(line["at"]).utcoffset() is not None


def test_the_example_is_such_a_line() -> None:
    [example] = re.findall(r"```json\n(.*?)\n```", PAGE, re.DOTALL)
    line = json.loads(example)
    check(line)
    assert line["message"] == "{} {} {} {} ms {} {}".format(
        *(line[name] for name in ("method", "route", "status", "duration_ms")),
        *(line[name] for name in ("caller_kind", "caller_id")),
    )


def test_the_loggers_of_the_page_are_those_that_have_a_level_of_their_own() -> None:
    config = logging_config(as_json=True, level="WARNING")["loggers"]
    lines = {name for name, each in config.items() if each.get("level") == "INFO"}
    assert lines == set(re.findall(r"^\| `(agentauth\.\w+)` \|", PAGE, re.MULTILINE))
