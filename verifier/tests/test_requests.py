"""The body of a verify request: strict members, types and amounts."""

import json
from typing import Any

import pytest

from verifier.tests.scene import LOOK, PAY, Scene, assert_refused, key, pay, scene


@pytest.mark.parametrize(
    "change",
    [
        {"unknown": 1},
        {"token": None},
        {"token": 7},
        {"proof": 7},
        {"method": None},
        {"method": ""},
        {"method": "M" * 33},
        {"url": None},
        {"url": ["x"]},
        {"action": None},
        {"action": "read"},
        {"action": {"type": "read"}},
        {"action": {"type": "fly", "resource": "x"}},
        {"action": {"type": "read", "resource": "calendar", "more": 1}},
        {"action": {"type": "read", "resource": "calendar", "arguments": {"x": 1.5}}},
        {"action": {"type": "read", "resource": "calendar", "arguments": {"x": None}}},
        {"action": {"type": "read", "resource": "calendar", "arguments": []}},
        {
            "action": {
                "type": "read",
                "resource": "calendar",
                "amount": {"value": "1.00", "currency": "EUR"},
            }
        },
        {"action": {"type": "transact", "resource": "payments"}, "idempotency_key": "k"},
        {"idempotency_key": None},
        {"idempotency_key": ""},
        {"idempotency_key": "k" * 129},
        {"idempotency_key": 7},
        {"dry_run": 1},
        {"dry_run": None},
    ],
    ids=str,
)
def test_a_request_that_is_not_in_its_form_is_the_callers_mistake(
    place: Scene, change: dict[str, Any]
) -> None:
    body = place.body(LOOK) | change
    assert assert_refused(place, body, status=400)["error"] == "invalid_request"
    # Nothing was spent: the same body without the mistake passes.
    clean = {name: value for name, value in body.items() if name not in change}
    fresh = place.body(LOOK)
    clean = {**fresh, **clean, "token": fresh["token"], "proof": fresh["proof"]} | _defaults(place)
    response = place.post(clean)
    assert response.status_code == 200, response.content


def _defaults(place: Scene) -> dict[str, Any]:
    return {"method": "POST", "url": place.url, "action": LOOK}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"token":"a","token":"b"}',
        b'{"token":NaN}',
        b"\xff",
        b"[" * 5000,
    ],
)
def test_body_must_be_a_strict_json_object(place: Scene, raw: bytes) -> None:
    assert assert_refused(place, raw, status=400)["error"] == "invalid_request"


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value",
    [
        "-1.00", "0", "0.00", "NaN", "1e309", "Infinity", 1, 1.5, "abc", "", " 1.00", "1.001",
        "9" * 30, None, True, "+1", "01.00", "1,00", "١",
    ],
)  # fmt: skip
def test_EN_14_amount_must_be_a_plain_positive_decimal(value: object) -> None:
    place = scene(PAY)
    action = {
        "type": "transact",
        "resource": "payments",
        "amount": {"value": value, "currency": "EUR"},
    }
    body = place.body(action, idempotency_key=key())
    assert assert_refused(place, body, status=400)["error"] == "invalid_request"


@pytest.mark.django_db
def test_a_payment_must_name_its_operation() -> None:
    place = scene(PAY)
    assert assert_refused(place, place.body(pay("1.00")), status=400)["error"] == "invalid_request"


@pytest.mark.parametrize(
    "resource",
    ["", "/", "calendar//x", "calendar/../x", "calendar/.", "calendär", "x" * 256, "a b"],
)
def test_a_malformed_resource_is_covered_by_nothing(place: Scene, resource: str) -> None:
    answer = assert_refused(place, place.body({"type": "read", "resource": resource}))
    assert (answer["error"], answer["reason"]) == ("insufficient_scope", "no_capability")


def test_a_query_string_is_refused(place: Scene) -> None:
    import base64

    credentials = base64.b64encode(f"{place.provider.pk}:{place.secret}".encode()).decode()
    answer = place.client.post(
        "/v1/verify?dry_run=true",
        data=json.dumps(place.body(LOOK)),
        content_type="application/json",
        headers={"Authorization": f"Basic {credentials}"},
    )
    assert answer.status_code == 400
