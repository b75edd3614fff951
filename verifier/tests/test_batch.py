"""POST /v1/verify/batch: many requests in one call, each decided and answered as if sent alone."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any, cast

import pytest
from django.db import OperationalError
from django.http import HttpResponse

from agentauth.protocol.decision_rules import Decision, decide
from audit.models import Event
from registry.tests.cast import basic
from tests.contract.scenarios import one_call_a_minute
from verifier.models import GrantLedger
from verifier.services.batch_fairness import MAX_UNDER_WAY
from verifier.stores import StoreCall, database_decisions
from verifier.tests.scene import LOOK, PAY, READ, Scene, counters, key, pay, scene

pytestmark = pytest.mark.django_db


def post(place: Scene, body: object, **headers: str) -> HttpResponse:
    return cast(
        "HttpResponse",
        place.client.post(
            "/v1/verify/batch",
            data=body if isinstance(body, bytes) else json.dumps(body),
            content_type="application/json",
            headers=headers or basic(place.provider, place.secret),
        ),
    )


def ask(place: Scene, *questions: object) -> list[dict[str, Any]]:
    response = post(place, {"requests": questions})
    assert response.status_code == 200, response.content
    assert response["Cache-Control"] == "no-store"
    answer = json.loads(response.content)
    assert answer.keys() == {"results"}
    assert len(answer["results"]) == len(questions)
    return cast("list[dict[str, Any]]", answer["results"])


def verdicts(answers: list[dict[str, Any]]) -> list[str]:
    return [
        "valid" if answer.get("valid") else answer.get("reason", answer["error"])
        for answer in answers
    ]


def test_each_is_answered_in_its_place_as_if_it_had_come_alone() -> None:
    place = scene(PAY, {"type": "read", "resource": "calendar"}, max_uses=3)
    token = place.token()
    questions = [
        place.body(LOOK, token=token),
        place.body({"type": "write", "resource": "calendar"}, token=token),
        place.body(pay("501.00"), token=token, idempotency_key=key()),
        place.body(pay("5.00"), token=token, idempotency_key=key()),
        place.body(token="not-a-token", proof="x"),
        place.body(LOOK, token=token),
        place.body(LOOK, token=token),
    ]
    answers = ask(place, *questions)
    expected = ["valid", "no_capability", "constraint", "valid", "malformed", "valid", "max_uses"]
    assert verdicts(answers) == expected
    assert [answer["limits"]["uses_remaining"] for answer in answers if answer["valid"]] == [
        2,
        1,
        0,
    ]
    # One event per request.
    outcomes = Event.objects.filter(kind__startswith="verifier.decision").values_list(
        "outcome", flat=True
    )
    assert Counter(outcomes) == {"success": 3, "denied": 4}


def test_the_order_of_events_is_that_of_the_questions(place: Scene) -> None:
    token = place.token()
    questions = [place.body(LOOK, token=each) for each in (token, "x", token, "x", token)]
    assert verdicts(ask(place, *questions)) == ["valid", "malformed", "valid", "malformed", "valid"]
    outcomes = Event.objects.filter(kind__startswith="verifier.decision").order_by("id")
    assert [event.outcome for event in outcomes] == [
        "success",
        "denied",
        "success",
        "denied",
        "success",
    ]


@pytest.mark.parametrize("action", [LOOK, pay("1.00")], ids=["light", "durable"])
def test_batch_judges_one_grant_in_order_whichever_token_is_known(
    action: dict[str, Any],
) -> None:
    place = scene(READ, PAY, max_requests_per_minute=1, max_burst=1)
    known = place.token()
    assert place.ask(LOOK, token=known, dry_run=True)["valid"]
    tokens = [place.token(), known, place.token()]
    operations = [{"idempotency_key": key()} if action is not LOOK else {} for _ in tokens]
    questions = [
        place.body(action, token=token, **named)
        for token, named in zip(tokens, operations, strict=True)
    ]
    assert verdicts(ask(place, *questions)) == ["valid", "rate", "rate"]


@pytest.mark.parametrize("count", [1, 5])
def test_DJ_25_each_question_counts_as_a_call_of_its_service_provider(
    place: Scene, count: int
) -> None:
    """A batch above the burst is accepted too, or it never could be; later calls wait for it."""
    with one_call_a_minute():
        assert len(ask(place, *[place.body(LOOK) for _ in range(count)])) == count
        answer = post(place, {"requests": [place.body(LOOK)]})
    assert answer.status_code == 429
    assert json.loads(answer.content)["retry_after"] == 60 * count + 1


def test_the_same_proof_twice_is_replayed_the_second_time(place: Scene) -> None:
    question = place.body(LOOK)
    assert verdicts(ask(place, question, question)) == ["valid", "replayed"]
    assert verdicts(ask(place, question)) == ["replayed"]


def test_refused_questions_give_back_the_room_they_took(place: Scene) -> None:
    question = place.body(LOOK, proof="garbage")
    each = MAX_UNDER_WAY // 2 + 1
    for _ in range(2):
        assert verdicts(ask(place, *[question] * each)) == ["malformed"] * each


BAD: dict[str, Callable[[dict[str, Any]], object]] = {
    "no object": lambda _: "x",
    "null": lambda _: None,
    "no token": lambda body: {name: body[name] for name in ("method", "url")},
    "unknown member": lambda body: body | {"dryrun": True},
    "wrong type": lambda body: body | {"dry_run": "yes"},
    "null action": lambda body: body | {"action": None},
    "payment without a key": lambda body: body | {"action": pay("1.00")},
    "batch in a batch": lambda body: {"requests": [body]},
}


@pytest.mark.parametrize("change", BAD.values(), ids=list(BAD))
def test_a_bad_one_is_answered_with_its_error_and_the_others_proceed(
    place: Scene, change: Callable[[dict[str, Any]], object]
) -> None:
    answers = ask(place, place.body(LOOK), change(place.body(LOOK)), place.body(LOOK))
    assert verdicts(answers) == ["valid", "invalid_request", "valid"]
    assert answers[1].keys() == {"error", "error_description"}
    # The event names the calling provider and contains no token.
    event = Event.objects.get(kind="audit.request.refused")
    assert (event.actor_id, event.service_provider_id) == (
        str(place.provider.pk),
        place.provider.pk,
    )
    assert event.data == {"error": "invalid_request", "route": "POST v1/verify/batch"}


def test_a_key_used_for_another_act_is_a_mismatch_in_its_place() -> None:
    place, operation = scene(PAY), key()
    questions = [
        place.body(pay(value), idempotency_key=operation) for value in ("1.00", "2.00", "1.00")
    ]
    answers = ask(place, *questions)
    assert verdicts(answers) == ["valid", "idempotency_mismatch", "valid"]
    assert answers[2]["repeated"] is True
    assert "valid" not in answers[1]
    # Its one event was committed with the spent proof.
    assert Event.objects.filter(reason="idempotency_mismatch").count() == 1
    assert not Event.objects.filter(kind="audit.request.refused").exists()
    assert GrantLedger.objects.get().uses == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"requests": []},
        {"requests": None},
        {"requests": {}},
        {"requests": [{}] * 257},
        {"requests": [{}], "more": 1},
        b"{",
        b'{"requests": [], "requests": [{}]}',
    ],
)
def test_malformed_batch_body_is_refused_whole(place: Scene, body: object) -> None:
    before = counters()
    response = post(place, body)
    assert (response.status_code, json.loads(response.content)["error"]) == (400, "invalid_request")
    assert counters() == before
    assert Event.objects.filter(outcome="denied").count() == 1


def test_without_good_credentials_nothing_is_judged(place: Scene) -> None:
    body = {"requests": [place.body(LOOK)]}
    for headers in ({"Accept": "*/*"}, basic(place.provider, "wrong")):
        response = post(place, body, **headers)
        assert (response.status_code, json.loads(response.content)["error"]) == (
            401,
            "invalid_client",
        )
    assert not Event.objects.filter(kind__startswith="verifier.decision").exists()
    assert verdicts(ask(place, *body["requests"])) == ["valid"]


def test_a_batch_may_be_one_megabyte_and_everything_else_64_kb(place: Scene) -> None:
    filler = {"token": "x" * 65_000, "method": "GET", "url": "https://x.example"}
    body = json.dumps({"requests": [filler] * 16})
    assert 1_000_000 < len(body) < 1_048_576
    assert set(verdicts(json.loads(post(place, body.encode()).content)["results"])) == {"malformed"}
    # The limit is exact to the byte, and spaces count.
    exact = body.encode() + b" " * (1_048_576 - len(body))
    assert post(place, exact).status_code == 200
    response = post(place, exact + b" ")
    assert (response.status_code, json.loads(response.content)["error"]) == (
        413,
        "request_too_large",
    )
    single = json.dumps(
        {"token": "x" * 66_000, "method": "GET", "url": "https://x.example"}
    ).encode()
    assert place.post(single).status_code == 413


def test_a_body_without_a_length_is_not_read(place: Scene) -> None:
    """A chunked request has no length, and the length is what bounds the read."""
    body = json.dumps({"requests": [place.body(LOOK)]})
    response = place.client.post(
        "/v1/verify/batch",
        body,
        content_type="application/json",
        headers=basic(place.provider, place.secret),
        CONTENT_LENGTH="",
    )
    assert response.status_code == 400


@pytest.mark.django_db(transaction=True)
def test_batch_question_hit_by_a_fault_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    place = scene(PAY, max_uses=10)
    questions = [place.body(pay("1.00"), idempotency_key=key()) for _ in range(3)]

    def failing(call: StoreCall, *more: Any) -> Decision:
        if call.operation_key == questions[1]["idempotency_key"]:
            raise OperationalError("connection to database.internal failed")
        return decide(call, *more)

    with monkeypatch.context() as patch:
        patch.setattr(database_decisions, "decide", failing)
        answers = ask(place, *questions)
    assert verdicts(answers) == ["valid", "temporarily_unavailable", "valid"]
    assert answers[1].keys() == {"error", "error_description"}
    assert "database.internal" not in json.dumps(answers)
    assert GrantLedger.objects.get().uses == 2
    assert Event.objects.filter(kind="verifier.decision.allowed").count() == 2


@pytest.mark.django_db(transaction=True)
def test_a_bad_one_whose_event_cannot_be_written_is_unavailable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = scene()

    def failing(**_: object) -> None:
        raise OperationalError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("audit.services.record", failing)
        answers = ask(place, place.body(LOOK), {}, place.body(LOOK))
    assert verdicts(answers) == ["valid", "temporarily_unavailable", "valid"]


@pytest.mark.django_db(transaction=True)
def test_a_database_that_stays_away_is_not_asked_256_times(monkeypatch: pytest.MonkeyPatch) -> None:
    place, tries = scene(), []

    def failing(**_: object) -> None:
        tries.append(1)
        raise OperationalError("away")

    questions = [place.body(LOOK)] * 20
    with monkeypatch.context() as patch:
        patch.setattr("verifier.services.web_verification.token_keys", failing)
        answers = ask(place, *questions)
    assert set(verdicts(answers)) == {"temporarily_unavailable"}
    assert len(tries) == 3
