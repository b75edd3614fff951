import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.http import HttpRequest, HttpResponse
from django.test import RequestFactory, override_settings
from django.urls import re_path

from agentauth.integrations import django_decorators as guard
from agentauth.integrations.django import AgentAuthMiddleware, decision, protected
from agentauth.protocol.errors import (
    AgentAuthError,
    IdempotencyMismatchError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk import Action, Allowed, RefusedError, RegistryError, UnknownOutcomeError
from agentauth.sdk.verifier import Asked

TOKEN = "aaaa.bbbb.cccc"
PROOF = "dddd.eeee.ffff"
ALLOWED = Allowed(decision_id="d", agent_id="a", agent_name="A", subject="s", grant_id="g")
READ = Action("read", "calendar")
SETTINGS = {
    "REGISTRY_URL": "https://registry.example.com",
    "CLIENT_ID": "id",
    "CLIENT_SECRET": "secret",
    "AUDIENCE": "https://api.sp.example/v1",
}


class FakeVerifier:
    """Stands in for the registry: records its calls, and answers or raises what the test says."""

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.answer: Allowed | AgentAuthError = ALLOWED

    def verify(self, **asked: Any) -> Allowed:
        self.asked.append(asked)
        if isinstance(self.answer, AgentAuthError):
            raise self.answer
        return self.answer


@pytest.fixture
def verifier(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeVerifier]:
    fake = FakeVerifier()
    monkeypatch.setattr(guard, "_client", lambda *_arguments: fake)
    with override_settings(AGENTAUTH=SETTINGS):
        yield fake


def served(target: Callable[..., Any]) -> Callable[..., Any]:
    """The view as a server calls it: its middleware first."""

    def respond(request: HttpRequest, **kwargs: Any) -> Any:
        # The only view, whatever the path.
        request.urlconf = (re_path("", target, kwargs),)  # type: ignore[assignment]  # its patterns

        def inner(again: HttpRequest) -> Any:
            return middleware.process_view(again, target, (), kwargs) or target(again, **kwargs)

        middleware = AgentAuthMiddleware(inner)
        return middleware(request)

    return respond


@served
@protected(READ)
def view(request: HttpRequest) -> HttpResponse:
    return HttpResponse(decision(request).agent_id)


def asking(
    path: str = "/v1/events",
    *,
    method: str = "GET",
    authorization: str | None = f"DPoP {TOKEN}",
    **meta: str | None,
) -> HttpRequest:
    sent: dict[str, Any] = {"HTTP_AUTHORIZATION": authorization, "HTTP_DPOP": PROOF} | meta
    return RequestFactory().generic(
        method, path, **{name: value for name, value in sent.items() if value is not None}
    )


def body(response: Any) -> dict[str, Any]:
    assert response["Cache-Control"] == "no-store"
    assert len(response.content) <= 1024
    answer: dict[str, Any] = json.loads(response.content)
    assert answer["error_description"]
    return answer


def test_an_allowed_request_reaches_the_view_with_its_decision(verifier: FakeVerifier) -> None:
    response = view(asking("/v1/events?day=1", method="POST", HTTP_IDEMPOTENCY_KEY="k-1"))
    assert response.status_code == 200
    assert verifier.asked == [
        {
            "token": TOKEN,
            "proof": PROOF,
            "method": "POST",
            "url": "https://api.sp.example/v1/events",
            "action": READ,
            "idempotency_key": "k-1",
        }
    ]


# ---- reading the headers


def test_VB_13_DP_71_a_bound_token_under_bearer_is_refused_without_a_proof(
    verifier: FakeVerifier,
) -> None:
    response = view(asking(authorization=f"Bearer {TOKEN}", HTTP_DPOP=None))
    assert (response.status_code, body(response)["error"]) == (401, "invalid_token")
    assert response["WWW-Authenticate"] == 'DPoP error="invalid_token", algs="EdDSA Ed25519 ES256"'
    assert verifier.asked == []


def test_VB_13_DP_72_bound_token_as_bearer_is_refused_even_with_proof(
    verifier: FakeVerifier,
) -> None:
    response = view(asking(authorization=f"Bearer {TOKEN}"))
    assert (response.status_code, body(response)["error"]) == (401, "invalid_token")
    assert verifier.asked == []


def test_DP_73_a_token_the_registry_does_not_bind_is_refused(verifier: FakeVerifier) -> None:
    verifier.answer = RefusedError("invalid_token", "malformed", {})
    response = view(asking())
    assert (response.status_code, body(response)["error"]) == (401, "invalid_token")


@pytest.mark.parametrize(
    "authorization",
    [
        f"DPoP {TOKEN},Bearer {TOKEN}",
        f"DPoP {TOKEN}, DPoP {TOKEN}",
        f"DPoP {TOKEN} {TOKEN}",
        f'DPoP token="{TOKEN}"',
    ],
)
def test_DP_74_two_authorizations_are_refused(verifier: FakeVerifier, authorization: str) -> None:
    response = view(asking(authorization=authorization))
    assert (response.status_code, body(response)["error"]) == (400, "invalid_request")
    assert verifier.asked == []


@pytest.mark.parametrize("authorization", ["DPoP", "DPoP ", "DPoP  "])
def test_DP_77_a_scheme_without_a_token_is_refused(
    verifier: FakeVerifier, authorization: str
) -> None:
    response = view(asking(authorization=authorization))
    assert (response.status_code, body(response)["error"]) == (400, "invalid_request")


def test_no_authorization_at_all_is_401(verifier: FakeVerifier) -> None:
    response = view(asking(authorization=None))
    assert (response.status_code, body(response)["error"]) == (401, "invalid_token")
    assert response["WWW-Authenticate"].startswith("DPoP ")


@pytest.mark.parametrize("proof", [f"{PROOF},{PROOF}", f"{PROOF}, x.y.z", "", None])
def test_DJ_2_two_proofs_joined_by_the_server_and_none_are_refused(
    verifier: FakeVerifier, proof: str | None
) -> None:
    response = view(asking(HTTP_DPOP=proof))
    assert (response.status_code, body(response)["error"]) == (401, "invalid_dpop_proof")
    assert 'error="invalid_dpop_proof"' in response["WWW-Authenticate"]
    assert verifier.asked == []


@pytest.mark.parametrize("key", ["", "a,b", "k" * 129, "schlüssel"])
def test_a_doubled_or_odd_idempotency_key_is_refused(verifier: FakeVerifier, key: str) -> None:
    response = view(asking(HTTP_IDEMPOTENCY_KEY=key))
    assert (response.status_code, body(response)["error"]) == (400, "invalid_request")
    assert verifier.asked == []


def test_an_idempotency_key_of_128_characters_is_passed_on(verifier: FakeVerifier) -> None:
    assert view(asking(HTTP_IDEMPOTENCY_KEY="k" * 128)).status_code == 200
    assert verifier.asked[0]["idempotency_key"] == "k" * 128


# ---- the URL


@pytest.mark.parametrize(
    "headers",
    [
        {"HTTP_HOST": "evil.example"},
        {"HTTP_X_FORWARDED_HOST": "evil.example"},
        {"HTTP_X_FORWARDED_PROTO": "http"},
        {"HTTP_FORWARDED": "host=evil.example"},
    ],
)
def test_DJ_3_the_url_is_the_audience_s_whatever_the_headers_say(
    verifier: FakeVerifier, headers: dict[str, str]
) -> None:
    view(asking("/v1/events", **headers))
    assert verifier.asked[0]["url"] == "https://api.sp.example/v1/events"


@pytest.mark.parametrize("name", ["RAW_URI", "REQUEST_URI"])
def test_the_path_is_taken_before_it_was_decoded(verifier: FakeVerifier, name: str) -> None:
    view(asking("/v1/a/b", **{name: "/v1/a%2Fb?x=1"}))
    assert verifier.asked[0]["url"] == "https://api.sp.example/v1/a%2Fb"


def test_without_the_raw_target_the_path_is_encoded_again(verifier: FakeVerifier) -> None:
    view(asking("/v1/caf%C3%A9%20x"))
    assert verifier.asked[0]["url"] == "https://api.sp.example/v1/caf%C3%A9%20x"


def test_a_target_that_is_an_address_is_refused(verifier: FakeVerifier) -> None:
    response = view(asking("/v1/x", RAW_URI="https://evil.example/v1/x"))
    assert response.status_code == 400
    assert verifier.asked == []


# ---- how a refusal is answered


@pytest.mark.parametrize(
    ("error", "reason", "fields", "status", "headers"),
    [
        ("invalid_token", "expired", {}, 401, {"WWW-Authenticate": 'DPoP error="invalid_token"'}),
        (
            "invalid_dpop_proof",
            "replayed",
            {},
            401,
            {"WWW-Authenticate": 'DPoP error="invalid_dpop_proof"'},
        ),
        (
            "use_dpop_nonce",
            None,
            {"nonce": "n1"},
            401,
            {"WWW-Authenticate": 'DPoP error="use_dpop_nonce"', "DPoP-Nonce": "n1"},
        ),
        ("insufficient_scope", "no_capability", {}, 403, {}),
        ("envelope_exceeded", "rate", {"retry_after": 6}, 429, {"Retry-After": "6"}),
        ("envelope_exceeded", "max_uses", {}, 429, {}),
        ("outside_time_window", None, {"retry_after": 60}, 403, {"Retry-After": "60"}),
        (
            "step_up_required",
            "confirm_above",
            {"approval_url": "https://r/c/1/", "confirmation_id": "1"},
            403,
            {},
        ),
        ("a_word_of_tomorrow", "x", {}, 403, {}),
    ],
)
def test_VB_8_each_refusal_has_its_status(
    verifier: FakeVerifier,
    error: str,
    reason: str | None,
    fields: dict[str, Any],
    status: int,
    headers: dict[str, str],
) -> None:
    verifier.answer = RefusedError(error, reason, fields)
    response = view(asking())
    answer = body(response)
    assert (response.status_code, answer["error"], answer.get("reason")) == (status, error, reason)
    for name, value in headers.items():
        assert response[name].startswith(value)
    for name in fields.keys() - {"nonce"}:
        assert answer[name] == fields[name]
    assert ("WWW-Authenticate" in response) == (status == 401)


def test_limits_too_long_for_an_answer_are_left_out_whole(verifier: FakeVerifier) -> None:
    violations = [{"argument": "payee", "operator": "in", "limit": ["x" * 50] * 64}]
    verifier.answer = RefusedError("insufficient_scope", "constraint", {"violations": violations})
    answer = body(view(asking()))
    assert "violations" not in answer
    assert answer["reason"] == "constraint"


@pytest.mark.parametrize(
    ("trouble", "status", "code"),
    [
        (TemporarilyUnavailableError("x"), 503, "temporarily_unavailable"),
        (UnknownOutcomeError("x", Asked(b"secret", "n", 0)), 503, "temporarily_unavailable"),
        (RegistryError("wrong secret", status=401), 503, "temporarily_unavailable"),
        (InvalidRequestError("idempotency_key is missing."), 400, "invalid_request"),
        (IdempotencyMismatchError("other action"), 409, "idempotency_mismatch"),
    ],
)
def test_a_fault_of_ours_is_503_never_401_and_never_a_yes(
    verifier: FakeVerifier, trouble: AgentAuthError, status: int, code: str
) -> None:
    verifier.answer = trouble
    response: Any = view(asking())
    assert (response.status_code, body(response)["error"]) == (status, code)
    assert ("Retry-After" in response) == (status == 503)
    assert b"secret" not in response.content


def test_a_nonce_with_a_yes_is_passed_on(verifier: FakeVerifier) -> None:
    verifier.answer = Allowed("d", "a", "A", "s", "g", nonce="n2")
    assert view(asking())["DPoP-Nonce"] == "n2"


# ---- repeats


def test_a_repeated_operation_is_not_acted_on_again(verifier: FakeVerifier) -> None:
    acted: list[HttpRequest] = []

    @served
    @protected(READ)
    def pay(request: HttpRequest) -> HttpResponse:
        acted.append(request)
        return HttpResponse()

    verifier.answer = Allowed("d", "a", "A", "s", "g", repeated=True)
    response = pay(asking(HTTP_IDEMPOTENCY_KEY="k"))
    assert (response.status_code, body(response)["error"]) == (409, "already_processed")
    assert acted == []


def test_a_view_that_handles_repeats_sees_them(verifier: FakeVerifier) -> None:
    @served
    @protected(READ, handles_repeats=True)
    def pay(request: HttpRequest) -> HttpResponse:
        return HttpResponse("stored" if decision(request).repeated else "new")

    verifier.answer = Allowed("d", "a", "A", "s", "g", repeated=True)
    assert pay(asking(HTTP_IDEMPOTENCY_KEY="k")).content == b"stored"


# ---- the act


def test_the_act_comes_from_the_request(verifier: FakeVerifier) -> None:
    def act(_request: HttpRequest, name: str) -> Action:
        return Action("read", f"calendar/{name}")

    @served
    @protected(act)
    def calendar(_request: HttpRequest, name: str) -> HttpResponse:
        return HttpResponse(name)

    assert calendar(asking(), name="work").status_code == 200
    assert verifier.asked[0]["action"] == Action("read", "calendar/work")


def test_unreadable_action_is_400_but_only_after_the_headers_pass(
    verifier: FakeVerifier,
) -> None:
    def act(_request: HttpRequest) -> Action:
        raise InvalidRequestError("Send an amount.")

    @served
    @protected(act)
    def pay(_request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    assert pay(asking()).status_code == 400
    # Unauthenticated callers do not learn how to write a payment.
    assert pay(asking(authorization=None)).status_code == 401


def test_an_error_of_the_view_itself_is_not_swallowed(verifier: FakeVerifier) -> None:
    @served
    @protected(READ)
    def broken(_request: HttpRequest) -> HttpResponse:
        raise InvalidRequestError("the view's own")

    with pytest.raises(InvalidRequestError):
        broken(asking())


def test_a_view_without_protection_has_no_decision() -> None:
    with pytest.raises(ImproperlyConfigured):
        decision(asking())


@pytest.mark.parametrize("missing", sorted(SETTINGS))
def test_a_missing_setting_is_named(missing: str) -> None:
    with (
        override_settings(
            AGENTAUTH={name: value for name, value in SETTINGS.items() if name != missing}
        ),
        pytest.raises(ImproperlyConfigured, match=missing),
    ):
        view(asking())
