"""Traces of real calls: what they say, what they never say, and that a collector delays nothing."""

import io
import json
import logging
import time
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.test import Client
from pytest_django.fixtures import Settings

from agentauth.job_table import Job
from agentauth.observability import tracing
from agentauth.observability.logging_config import JsonFormatter, request_id, trace_id
from approvals.tests.cast import PAY, READ_CALENDAR, Person, invited
from audit import bounded_http_post
from audit.bounded_http_post import AddressRule
from kms.services import ensure_key
from registry.models import Grant, ServiceProvider
from registry.services.enrolment_codes import create_enrolment_code
from registry.tests.cast import TESTER, AgentClient, basic
from tests.otlp_receiver import Collector, attributes
from tests.otlp_receiver import receiver as receiver  # noqa: PLC0414 — a fixture
from tests.time_limits import within

pytestmark = pytest.mark.django_db

KEYS = {
    "agentauth.decision",
    "agentauth.error",
    "agentauth.job",
    "agentauth.key.backend",
    "agentauth.key.purpose",
    "agentauth.reason",
    "agentauth.request_id",
    "db.collection.name",
    "db.operation.batch.size",
    "db.operation.name",
    "db.system.name",
    "error.type",
    "http.request.method",
    "http.response.status_code",
    "http.route",
}
Read = Callable[[], list[Any]]


@pytest.fixture
def read(receiver: Collector) -> Read:
    """Traces this process; ends that, and returns its spans."""
    tracing.start("web")

    def stop() -> list[Any]:
        tracing.stop()
        return receiver.spans

    return stop


def named(spans: list[Any], name: str) -> list[Any]:
    return [span for span in spans if span.name == name]


class Story:
    """From an invitation to a payment and to refusals, and all that no span may hold of it."""

    def __init__(self, provider: ServiceProvider, secret: str, now: datetime) -> None:
        self.provider, self.secret, self.now = provider, secret, now
        self.agent = AgentClient()
        self.reason = "Grandma's invoice 4711"
        self.kept: dict[str, str] = {"provider secret": secret, "reason": self.reason}

    def run(self) -> None:
        for purpose in ("token", "receipt"):
            ensure_key(purpose=purpose, actor=TESTER, now=self.now)
        self.alice = invited("alice@example.org", "Alice Wonder", now=self.now)
        self.kept |= {"address": "alice@example.org", "name": "Alice Wonder"}
        _, code = create_enrolment_code(human=self.alice.human, actor=TESTER, now=self.now)
        made = self.agent.register(code)
        assert made.status_code == 201, made.content
        self.kept |= {"enrolment code": code, "thumbprint": self.agent.jkt}
        self.kept |= {"cookie": str(self.alice.client.cookies["agentauth_session"].value)}
        self.unclaimed = AgentClient().register()
        self.claim()
        self.token = self.approved_token(self.alice)
        self.pay()
        self.refusals()

    def claim(self) -> None:
        link = self.unclaimed.json()["claim_url"]
        self.kept["claim secret"] = link.rstrip("/").rpartition("/")[2]
        assert self.alice.get(link.partition("8000")[2] + "?why=because").status_code == 200
        self.kept["query"] = "because"

    def approved_token(self, alice: Person) -> str:
        capabilities = [READ_CALENDAR, PAY]
        asked = self.agent.ask(self.provider, capabilities=capabilities, reason=self.reason)
        grant = Grant.objects.get(pk=asked.json()["grant_id"])
        assert alice.approve(grant).status_code == 200
        answer = self.agent.call("POST", "/v1/tokens", {"grant_id": str(grant.pk)})
        self.kept["grant"] = str(grant.pk)
        self.kept["agent"] = str(grant.agent_id)
        self.kept["human"] = str(alice.human.pk)
        return str(answer.json()["access_token"])

    def question(self, **more: Any) -> dict[str, Any]:
        url = self.provider.audience + "/accounts/4712"
        proof = self.agent.proof("POST", "", url=url, access_token=self.token)
        self.kept[f"proof {len(self.kept)}"] = proof
        return {"token": self.token, "proof": proof, "method": "POST", "url": url} | more

    def verify(self, body: dict[str, Any], secret: str = "") -> Any:
        headers = basic(self.provider, secret or self.secret)
        return Client().post("/v1/verify", body, content_type="application/json", headers=headers)

    def pay(self) -> None:
        action = {
            "type": "transact",
            "resource": "payments",
            "amount": {"value": "12.34", "currency": "EUR"},
        }
        key = self.kept["operation"] = "operation-key-of-this-payment"
        answer = self.verify(self.question(action=action, idempotency_key=key))
        assert answer.json()["valid"], answer.json()
        self.kept |= {"token": self.token, "amount": "12.34", "url": "accounts/4712"}

    def refusals(self) -> None:
        assert not self.verify(self.question(action={"type": "delete", "resource": "x"})).json()[
            "valid"
        ]
        assert self.verify(self.question(), secret="a-wrong-secret").status_code == 401
        assert self.agent.call("GET", "/v1/agents/me", proof="not.a.proof").status_code == 401
        self.kept |= {"wrong secret": "a-wrong-secret", "wrong proof": "not.a.proof"}


@pytest.fixture
def story(provider_and_secret: tuple[ServiceProvider, str], now: datetime) -> Story:
    return Story(*provider_and_secret, now)


def test_spans_hold_names_and_no_values(read: Read, receiver: Collector, story: Story) -> None:
    story.run()
    Client().get("/setup/T7zW6WspwielpVUSQnHIrg/?code=a-query-secret")
    spans = read()
    text = receiver.text
    everything = story.kept | {"link": "T7zW6WspwielpVUSQnHIrg", "query secret": "a-query-secret"}
    assert [what for what, value in everything.items() if value in text] == []
    assert {key for span in spans for key in attributes(span)} <= KEYS
    assert not any(span.events for span in spans)
    assert receiver.services == {"agentauth-web"}
    [link] = named(spans, "GET /setup/<str:code>/")
    assert attributes(link)["http.response.status_code"] == 404


def test_a_trace_leads_from_a_request_to_sql_and_signatures(read: Read, story: Story) -> None:
    story.run()
    spans = read()
    [token] = named(spans, "POST /v1/tokens")
    below = [span for span in spans if span.parent_span_id == token.span_id]
    [signature] = [span for span in below if span.name == "sign"]
    assert attributes(signature) == {
        "agentauth.key.backend": "file",
        "agentauth.key.purpose": "token",
    }
    assert named(below, "INSERT registry_token")
    assert {span.trace_id for span in below} == {token.trace_id}
    told = attributes(token)
    assert uuid.UUID(told["agentauth.request_id"]).bytes == token.trace_id
    paid, denied, refused = named(spans, "POST /v1/verify")
    assert attributes(paid)["agentauth.decision"] == "allowed"
    assert attributes(denied)["agentauth.decision"] == "denied"
    assert attributes(denied)["agentauth.error"] == "insufficient_scope"
    assert attributes(refused)["error.type"] == "invalid_client"
    [unproven] = named(spans, "GET /v1/agents/me")
    assert attributes(unproven)["agentauth.reason"] == "malformed"


def test_a_failed_request_names_the_class_of_its_error_alone(
    read: Read, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("a secret in an error")

    monkeypatch.setattr("agentauth.middleware.RateLimitMiddleware.count", fails)
    assert Client(raise_request_exception=False).get("/sign-in/").status_code == 500
    [span] = named(read(), "GET none")
    told = attributes(span)
    assert (told["error.type"], told["http.response.status_code"]) == ("server_error", 500)
    assert span.status.code == 2
    assert "a secret" not in receiver.text


def test_callers_choose_neither_trace_nor_sampling(
    monkeypatch: pytest.MonkeyPatch, receiver: Collector
) -> None:
    theirs, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    sent = {"traceparent": f"00-{theirs}-{parent}-01", "tracestate": "vendor=a-text"}
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tracing.start("web")
    Client().get("/health/live", headers=sent)
    tracing.stop()
    assert receiver.spans == []
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_on")
    tracing.start("web")
    Client().get("/health/live", headers=sent)
    Client().get("/health/live", headers={"traceparent": f"00-{theirs}-{parent}-01-more"})
    tracing.stop()
    linked, alone = receiver.spans
    assert (linked.trace_id.hex(), linked.parent_span_id) != (theirs, bytes.fromhex(parent))
    assert linked.trace_id.hex() != theirs
    [link] = linked.links
    assert (link.trace_id.hex(), link.span_id.hex()) == (theirs, parent)
    assert not alone.links
    assert "a-text" not in receiver.text


def test_log_lines_and_answers_carry_the_ids_of_the_trace(
    read: Read, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = io.StringIO()
    handler = logging.StreamHandler(lines)
    handler.setFormatter(JsonFormatter())
    logger = logging.getLogger("agentauth.requests")
    monkeypatch.setattr(logger, "handlers", [handler])
    caplog.set_level(logging.INFO, logger.name)
    answer = Client().get("/health/live")
    [span] = named(read(), "GET /health/live")
    line = json.loads(lines.getvalue())
    assert line["trace_id"] == span.trace_id.hex()
    assert line["request_id"] == answer["X-Request-Id"] == str(uuid.UUID(line["trace_id"]))
    assert (request_id.get(), trace_id.get()) == ("", "")


def test_a_run_of_a_job_is_a_trace_of_its_own(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a request too, wherever it is answered. What is outside a trace is not traced."""

    def look(*, now: datetime) -> None:
        Grant.objects.count()
        assert trace_id.get()
        Client().get("/health/live")

    def fails(*, now: datetime) -> None:
        raise OSError("a path")

    monkeypatch.setattr("agentauth.job_table.may_act", lambda: True)
    Job(look, 1.0).do()
    Grant.objects.count()
    with pytest.raises(OSError, match="a path"):
        Job(fails, 1.0).do()
    query, request, ran, failed = read()
    assert (ran.name, failed.name) == ("job agentauth.look", "job agentauth.fails")
    assert (query.name, query.parent_span_id) == ("SELECT registry_grant", ran.span_id)
    assert (request.name, request.parent_span_id) == ("GET /health/live", b"")
    assert (attributes(failed)["error.type"], failed.status.code) == ("OSError", 2)


def test_a_person_s_host_is_in_no_span_and_an_operator_s_is(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def post(may_connect: AddressRule | None) -> Callable[..., None]:
        def run(*, now: datetime) -> None:
            # Nothing listens there.
            url = "http://localhost:9/a-secret-path?query"
            bounded_http_post.post(
                url,
                b"text",
                may_connect=may_connect,
                through_proxies=False,
                seconds=5,
                max_bytes=9,
            )

        return run

    tracing.start("jobs")
    monkeypatch.setattr("agentauth.job_table.may_act", lambda: True)
    for rule in (None, lambda _: True):
        with pytest.raises(bounded_http_post.NoAnswerError):
            Job(post(rule), 1.0).do()
    tracing.stop()
    witness, webhook = named(receiver.spans, "POST")
    assert attributes(witness)["server.address"] == "localhost"
    assert attributes(webhook) == {
        "http.request.method": "POST",
        "error.type": "NoAnswerError",
    }
    assert "a-secret-path" not in receiver.text


def test_a_hanging_collector_delays_no_request_and_bounds_the_end(
    receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "20")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.3)
    receiver.goes_on.clear()
    tracing.start("web")
    Client().get("/health/live")
    assert receiver.asked.wait(within(5))
    client, begun = Client(), time.monotonic()
    for _ in range(100):
        assert client.get("/health/live").status_code == 200
    assert time.monotonic() - begun < within(3)
    begun = time.monotonic()
    tracing.stop()
    assert time.monotonic() - begun < within(2)
    assert len(receiver.spans) <= 20


def test_without_its_variables_nothing_is_traced_or_replaced(settings: Settings) -> None:
    from agentauth.middleware import RequestIdMiddleware

    before = RequestIdMiddleware.__call__
    settings.TRACING = False
    tracing.start("web")
    assert RequestIdMiddleware.__call__ is before
    assert tracing._provider is None
