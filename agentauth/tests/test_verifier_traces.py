"""The verifier's endpoint is traced to Redis, to its group commit, and into Django's threads."""

import uuid
from typing import Any

import pytest

from agentauth.observability import tracing
from tests.endpoint_comparison import Both, ask
from tests.endpoint_comparison import both as both  # noqa: PLC0414 — a fixture
from tests.endpoint_comparison import served as served  # noqa: PLC0414 — a fixture
from tests.otlp_receiver import Collector, attributes
from tests.otlp_receiver import receiver as receiver  # noqa: PLC0414 — a fixture
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
