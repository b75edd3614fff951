"""One line and one metric per request, with values from a fixed set; and who may read metrics."""

import logging
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client
from prometheus_client import REGISTRY
from pytest_django import DjangoCaptureOnCommitCallbacks, Settings

from agentauth.http_errors import STATUSES
from agentauth.observability import database_metrics, metrics
from agentauth.protocol import errors
from audit import kinds
from audit.models import Event
from registry.models import ServiceProvider
from registry.tests.cast import AgentClient, approved, basic, issue, pending

pytestmark = pytest.mark.django_db


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    found = [record for record in caplog.records if record.name == "agentauth.requests"]
    return [record.__dict__["members"] for record in found]


def test_a_request_is_one_line_with_its_route_and_caller(
    caplog: pytest.LogCaptureFixture, agent: AgentClient
) -> None:
    with caplog.at_level(logging.INFO, "agentauth.requests"):
        agent.call("GET", "/v1/grants/01980000-0000-7000-8000-000000000000")
        Client().get("/setup/T7zW6WspwielpVUSQnHIrg/")
        Client().generic("EVIL", "/nowhere/at/all?token=secret")
    first, second, third = lines(caplog)
    assert first.pop("duration_ms") >= 0
    assert first == {
        "method": "GET",
        "route": "/v1/grants/<str:grant_id>",
        "status": 404,
        "caller_kind": "agent",
        "caller_id": str(agent.agent().pk),
    }
    assert second["route"] == "/setup/<str:code>/"
    assert (third["method"], third["route"], third["caller_kind"]) == ("other", "none", "anonymous")
    assert "T7zW6WspwielpVUSQnHIrg" not in caplog.text
    assert "secret" not in caplog.text


def test_a_line_is_written_also_while_the_database_is_away(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_request: object) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr("django.contrib.auth.middleware.get_user", away)
    with caplog.at_level(logging.INFO, "agentauth.requests"):
        Client(raise_request_exception=False).get("/health/live")
    (line,) = lines(caplog)
    assert (line["status"], line["caller_kind"]) == (503, "unknown")


@pytest.mark.parametrize("code", sorted(STATUSES))
def test_OP_9_every_error_code_has_a_series(code: str) -> None:
    error = errors.InvalidRequestError("x")
    error.__dict__["code"] = code
    before = value("agentauth_errors_total", error=code, reason="")
    metrics.count_error(error)
    assert value("agentauth_errors_total", error=code, reason="") == before + 1


def test_OP_9_answers_are_counted_by_route_status_and_code(agent: AgentClient) -> None:
    route = {"method": "GET", "route": "/v1/grants/<str:grant_id>", "status": "404"}
    requests = value("agentauth_http_request_seconds_count", **route)
    found = value("agentauth_errors_total", error="not_found", reason="")
    proofs = value("agentauth_errors_total", error="invalid_dpop_proof", reason="malformed")
    agent.call("GET", "/v1/grants/01980000-0000-7000-8000-000000000000")
    Client().get("/v1/agents/me", headers={"DPoP": "x"})
    assert value("agentauth_http_request_seconds_count", **route) == requests + 1
    assert value("agentauth_errors_total", error="not_found", reason="") == found + 1
    assert (
        value("agentauth_errors_total", error="invalid_dpop_proof", reason="malformed")
        == proofs + 1
    )


def test_OP_9_strangers_make_no_new_series() -> None:
    Client().get("/nowhere")
    series = len(next(iter(metrics.REQUESTS.collect())).samples)
    for number in range(20):
        Client().generic(
            f"M{number}", f"/nowhere-{number}", headers={"Host": f"evil-{number}.example"}
        )
        Client().get(f"/setup/{number}/?{number}")
        Client().get("/v1/agents/me", headers={"DPoP": str(number)})
    # One series per new combination: `other` to no route (400), the setup page, the agent's own
    # data.
    assert len(next(iter(metrics.REQUESTS.collect())).samples) <= series + 3 * (
        len(metrics.BUCKETS) + 3
    )


def test_decisions_and_tokens_are_counted_once_they_are_committed(
    agent: AgentClient,
    provider_and_secret: tuple[ServiceProvider, str],
    token_key: None,
    now: Any,
    django_capture_on_commit_callbacks: DjangoCaptureOnCommitCallbacks,
) -> None:
    provider, _ = provider_and_secret
    denied = {"decision": "denied", "error": "invalid_token", "reason": "malformed"}
    decided = value("agentauth_decisions_total", **denied)
    issued = value("agentauth_events_total", kind=kinds.TOKEN_ISSUED)
    with django_capture_on_commit_callbacks(execute=True):
        issue(agent, approved(agent, provider, now=now))
        body = {"token": "x", "proof": "x", "method": "GET", "url": "http://127.0.0.1:8001/v1"}
        headers = basic(*provider_and_secret)
        Client().post("/v1/verify", body, content_type="application/json", headers=headers)
        assert value("agentauth_events_total", kind=kinds.TOKEN_ISSUED) == issued
    assert value("agentauth_events_total", kind=kinds.TOKEN_ISSUED) == issued + 1
    assert value("agentauth_decisions_total", **denied) == decided + 1


def read(**headers: str) -> Any:
    return Client().get("/metrics", headers=headers)


def test_DJ_18_metrics_are_404_for_unauthorised_callers(settings: Settings) -> None:
    unknown = Client().get("/nowhere").json()
    assert read().status_code == 200
    assert Client(REMOTE_ADDR="203.0.113.7").get("/metrics").json() == unknown
    settings.DEVELOPMENT = False
    assert read().json() == unknown
    settings.METRICS_TOKEN = "only-the-collector-knows"
    for wrong in ("", "Bearer", "Bearer ", "Bearer only", "Basic only-the-collector-knows"):
        answer = read(Authorization=wrong)
        assert (answer.status_code, answer.json()) == (404, unknown)
    assert read(Authorization="Bearer only-the-collector-knows").status_code == 200
    settings.DEVELOPMENT = True
    assert read().status_code == 404


def test_the_page_holds_what_the_database_says(
    agent: AgentClient, service_provider: ServiceProvider, token_key: None, now: Any
) -> None:
    approved(agent, service_provider, now=now)
    assert "agentauth_grants_pending_oldest_seconds 0.0" in read().content.decode()
    pending(agent, service_provider, now=now - timedelta(minutes=1))
    page = read().content.decode()
    assert re.search(r"^agentauth_grants_pending_oldest_seconds (6\d|7\d)\.", page, re.MULTILINE)
    assert 'agentauth_grants{state="approved"} 1.0' in page
    assert 'agentauth_grants{state="expired"} 0.0' in page
    assert 'agentauth_keys{purpose="token",state="active"} 1.0' in page
    assert 'agentauth_key_age_seconds{purpose="token"}' in page
    assert f"agentauth_audit_queue_events {float(Event.objects.count())}" in page
    assert "agentauth_audit_queue_oldest_seconds" in page
    assert str(agent.agent().pk) not in page


def test_without_its_database_the_page_still_has_its_counters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def away(_now: datetime) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(database_metrics, "_grants", away)
    page = read().content.decode()
    assert "agentauth_http_request_seconds" in page
    assert "agentauth_grants" not in page
