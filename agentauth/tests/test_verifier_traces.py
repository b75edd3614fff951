"""The verifier's endpoint is traced to Redis, to its group commit, and into Django's threads."""

import asyncio
import uuid
from dataclasses import replace
from typing import Any

import pytest
from opentelemetry.trace import SpanKind

from agentauth.observability import spans as traced_spans
from agentauth.observability import traced_calls, tracing
from registry.models import Grant
from tests.endpoint_comparison import Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.otlp_receiver import Collector, attributes
from tests.otlp_receiver import receiver as receiver  # noqa: PLC0414 — a fixture
from verifier.stores.group_commit import GroupCommitter
from verifier.tests.scene import PAY, READ, key, pay, scene

pytestmark = [pytest.mark.redis, pytest.mark.postgres, pytest.mark.django_db(transaction=True)]


def below(spans: list[Any], parent: Any) -> dict[str, Any]:
    return {span.name: span for span in spans if span.parent_span_id == parent.span_id}


def test_a_verification_is_traced_to_redis_and_the_group_commit(
    both: Both, receiver: Collector
) -> None:
    place = scene(READ, PAY)
    payment = place.body(pay("7.31"), idempotency_key=key())
    tracing.start("verifier")
    assert both.at_endpoint(ask(place, place.body(READ), traceparent="00-x-y-01"))[0] == 200
    assert both.at_endpoint(ask(place, payment))[0] == 200
    refused = both.at_endpoint(ask(place, place.body(READ), authorization="Basic bm86bm8="))
    assert refused[0] == 401
    tracing.stop()
    spans = receiver.spans
    light, paid, turned_away = [span for span in spans if span.name == "POST /v1/verify"]
    for span, decision in ((light, "allowed"), (paid, "allowed")):
        told = attributes(span)
        assert told["agentauth.decision"] == decision
        assert uuid.UUID(told["agentauth.request_id"]).bytes == span.trace_id
        assert ("EVALSHA judge" in below(spans, span)) is both.redis
    committed = below(spans, below(spans, paid)["group commit"])["transaction"]
    assert committed.trace_id == paid.trace_id
    statements = below(spans, committed)
    assert "COMMIT" in statements
    assert any("INSERT audit_event" in name for name in statements)
    # Django refused it in a thread, in the same trace and under the same id.
    told = attributes(turned_away)
    assert (told["error.type"], told["http.response.status_code"]) == ("invalid_client", 401)
    assert uuid.UUID(told["agentauth.request_id"]).bytes == turned_away.trace_id
    assert receiver.services == {"agentauth-verifier"}
    for kept in (place.pem, place.secret, payment["token"], payment["proof"], "7.31"):
        assert kept not in receiver.text
    for kept in (payment["idempotency_key"], place.grant.pk, place.agent.pk, place.human.pk):
        assert str(kept) not in receiver.text


def test_what_a_caller_makes_up_names_no_span(both: Both, receiver: Collector) -> None:
    place = scene(READ)
    tracing.start("verifier")
    asked = ask(place, place.body(READ), "/a-made-up-path")
    assert both.at_endpoint(asked)[0] == 404
    assert both.at_endpoint(replace(asked, method="MADEUP"))[0] in {404, 405}
    tracing.stop()
    assert [span.name for span in receiver.spans if not span.parent_span_id] == [
        "POST none",
        "other none",
    ]
    assert "a-made-up-path" not in receiver.text
    assert "MADEUP" not in receiver.text


def test_a_failed_verification_is_marked_as_one(
    both: Both, receiver: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a secret")

    place = scene(READ)
    tracing.start("verifier")
    monkeypatch.setattr("verifier.services.verifier_process.VerifierProcess.verify", fails)
    assert both.at_endpoint(ask(place, place.body(READ)))[0] == 500
    tracing.stop()
    [span] = [span for span in receiver.spans if span.name == "POST /v1/verify"]
    assert span.status.code == 2
    assert "a secret" not in receiver.text


def test_a_shared_transaction_is_linked_to_each_call_that_waits_for_it(receiver: Collector) -> None:
    tracing.start("verifier")
    asked = [object() for _ in range(3)]
    commit = traced_calls._traced_commit(lambda _: None)

    async def story() -> None:
        together = asyncio.Barrier(len(asked))

        async def decide(_: object, each: object) -> None:
            await together.wait()
            if each is asked[0]:
                commit(asked)
            await together.wait()

        wait = traced_calls._traced_wait(decide)

        async def call(each: object) -> None:
            with traced_spans.begin_trace("request", SpanKind.SERVER):
                await wait(None, each)

        await asyncio.gather(*map(call, asked))

    asyncio.run(story())
    tracing.stop()
    [shared] = [span for span in receiver.spans if span.name == "transaction"]
    waiting = {span.span_id for span in receiver.spans if span.name == "group commit"}
    assert attributes(shared)["agentauth.decisions"] == 3
    assert {shared.parent_span_id, *(link.span_id for link in shared.links)} == waiting
    assert traced_calls._waiting == {}


def test_what_runs_in_a_committing_thread_belongs_to_its_request(receiver: Collector) -> None:
    tracing.start("verifier")
    committer = GroupCommitter(threads=1)
    committer.start()

    async def story() -> None:
        with traced_spans.begin_trace("request", SpanKind.SERVER):
            await committer.run(Grant.objects.count)

    try:
        asyncio.run(story())
    finally:
        committer.stop()
    tracing.stop()
    [request] = [span for span in receiver.spans if span.name == "request"]
    assert "SELECT registry_grant" in below(receiver.spans, request)
