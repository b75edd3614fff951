import itertools
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from agentauth.protocol.errors import (
    CooldownActiveError,
    InvalidClientError,
    InvalidRequestError,
    SlowDownError,
    TemporarilyUnavailableError,
)
from agentauth.sdk.errors import AudienceError, RegistryError
from agentauth.sdk.tests.fake_registry import (
    AUDIENCE,
    CALENDAR,
    GRANT_ID,
    SP_ID,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)

# ---- signed calls


def test_the_headers_hold_token_and_a_proof_for_this_one_request(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    headers = run(client.authenticate_headers(SP_ID, "POST", "/v1/events?day=1"))
    assert headers.keys() == {"Authorization", "DPoP"}
    # The fake checks the proof against exactly this request, query and all.
    registry(httpx.Request("POST", f"{AUDIENCE}/events?day=1", headers=headers))
    assert run(client.authenticate_headers(SP_ID, "POST", "/v1/events"))["DPoP"] != headers["DPoP"]


@pytest.mark.parametrize(
    "url", ["/events", "/v10", "https://evil.example/v1/x", "//evil.example/v1", "/v1/../x"]
)
def test_outside_the_audience_nothing_is_signed(
    registry: FakeRegistry, tmp_path: Path, url: str
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    with pytest.raises(AudienceError):
        run(client.authenticate_headers(SP_ID, "GET", url))
    assert registry.sent("POST", "/v1/tokens") == []


# ---- failures of the registry


def test_OG_26_after_503_it_retries_with_a_new_proof_and_the_same_key(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    trouble = [error(503, "temporarily_unavailable", {"Retry-After": "2"}) for _ in range(2)]
    registry.script = lambda r: trouble.pop() if r.method == "POST" and trouble else None
    asked = run(client.request_grant(SP_ID, CALENDAR))
    assert asked.grant_id == GRANT_ID
    tries = registry.sent("POST", "/v1/grants")
    assert len(tries) == 3
    assert len({r.headers["Idempotency-Key"] for r in tries}) == 1
    assert len({r.content for r in tries}) == 1
    # The fake refuses a proof that it has seen before.
    assert len({r.headers["DPoP"] for r in tries}) == 3
    assert len(slept) == 2
    assert all(2 <= wait < 3 for wait in slept)


def test_OG_26_a_lost_reply_is_asked_for_again_with_the_same_key(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    trouble: list[Exception] = [httpx.ReadTimeout("lost"), httpx.RemoteProtocolError("half")]
    registry.script = lambda r: trouble.pop() if r.method == "POST" and trouble else None
    run(client.request_grant(SP_ID, CALENDAR))
    assert len({r.headers["Idempotency-Key"] for r in registry.sent("POST", "/v1/grants")}) == 1


def test_OG_26_429_waits_as_long_as_it_says(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    trouble = [error(429, "slow_down", {"Retry-After": "7"})]
    registry.script = lambda r: (
        trouble.pop() if r.url.path.startswith("/v1/grants/") and trouble else None
    )
    registry.grants = [grant()]
    run(client.get_grant(GRANT_ID))
    assert len(slept) == 1
    assert 7 <= slept[0] < 8


def test_two_operations_have_two_keys(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    for uses in (1, 2):
        run(client.request_grant(SP_ID, CALENDAR, {"max_uses": uses}))
    assert len({r.headers["Idempotency-Key"] for r in registry.sent("POST", "/v1/grants")}) == 2


def test_an_outage_ends_in_an_error_not_in_a_loop(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: httpx.ConnectError("refused")
    with pytest.raises(TemporarilyUnavailableError, match="Is it running"):
        run(client.get_grant(GRANT_ID))
    assert len(registry.sent("GET", f"/v1/grants/{GRANT_ID}")) == 4
    assert len(slept) == 3


@pytest.mark.parametrize("code", ["cooldown_active", "too_many_pending_grants"])
def test_what_waiting_does_not_heal_is_not_waited_for(
    registry: FakeRegistry, tmp_path: Path, slept: list[float], code: str
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda r: (
        error(429, code, {"Retry-After": "1"}) if r.url.path == "/v1/grants" else None
    )
    with pytest.raises(Exception, match=code):
        run(client.request_grant(SP_ID, CALENDAR))
    assert slept == []


def test_an_hour_is_the_caller_s_to_wait(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda r: (
        error(429, "cooldown_active", {"Retry-After": "3600"}, retry_after=3600)
        if r.url.path == "/v1/grants"
        else None
    )
    with pytest.raises(CooldownActiveError) as cooling:
        run(client.request_grant(SP_ID, CALENDAR))
    assert cooling.value.fields["retry_after"] == 3600
    assert slept == []


def test_a_limit_that_heals_only_in_an_hour_is_shown_at_once(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: error(429, "slow_down", {"Retry-After": "3600"})
    with pytest.raises(SlowDownError):
        run(client.get_grant(GRANT_ID))
    assert slept == []


def test_a_refusal_is_not_tried_again(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: error(401, "invalid_client")
    with pytest.raises(InvalidClientError):
        run(client.get_grant(GRANT_ID))
    assert len(registry.sent("GET", f"/v1/grants/{GRANT_ID}")) == 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_with_a_proof(
    registry: FakeRegistry, tmp_path: Path, status: int
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda r: (
        httpx.Response(status, headers={"Location": "https://evil.example/"})
        if r.url.path.startswith("/v1/grants/")
        else None
    )
    with pytest.raises(RegistryError, match="redirect"):
        run(client.get_grant(GRANT_ID))
    assert all(str(request.url).startswith(URL) for request in registry.requests)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b'{"a":1,"a":2}', b"\xff", b'{"grant_id":1}'])
def test_malformed_registry_answer_is_an_error(
    registry: FakeRegistry, tmp_path: Path, body: bytes
) -> None:
    client = registered(registry, tmp_path)
    registry.script = lambda _request: httpx.Response(200, content=body)
    with pytest.raises(RegistryError):
        run(client.get_grant(GRANT_ID))


@pytest.mark.parametrize("identifier", ["", ".", "..", "../agents/me", "a/b", "a?b", "a%2Fb"])
def test_an_id_cannot_leave_its_place_in_the_path(
    registry: FakeRegistry, tmp_path: Path, identifier: str
) -> None:
    client = registered(registry, tmp_path)
    sent = len(registry.requests)
    with pytest.raises(InvalidRequestError):
        run(client.service_provider(identifier))
    assert len(registry.requests) == sent


# ---- whole calls to a service provider


def calls(registry: FakeRegistry) -> list[httpx.Request]:
    return [request for request in registry.requests if not str(request.url).startswith(URL)]


def test_OG_26_a_call_is_tried_again_with_a_new_proof_and_the_same_key(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    trouble: list[httpx.Response | Exception] = [
        httpx.ReadTimeout("lost"),
        error(503, "temporarily_unavailable", {"Retry-After": "1"}),
    ]
    registry.script = lambda r: (
        trouble.pop() if r.url.host == "api.sp.example" and trouble else None
    )
    response = run(client.call(SP_ID, "POST", "/v1/payments", json={"amount": "1.00"}))
    assert response.status_code == 200
    assert len(calls(registry)) == 3
    assert len({r.headers["Idempotency-Key"] for r in calls(registry)}) == 1
    assert len({r.headers["DPoP"] for r in calls(registry)}) == 3


def test_a_service_provider_that_never_answers_is_asked_four_times(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    registry.script = lambda r: (
        httpx.ReadTimeout("lost") if r.url.host == "api.sp.example" else None
    )
    with pytest.raises(TemporarilyUnavailableError, match="did not answer in time"):
        run(client.call(SP_ID, "GET", "/v1/x"))
    assert (len(calls(registry)), len(slept)) == (4, 3)


def test_a_long_limit_comes_back_to_the_caller(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    registry.script = lambda r: (
        error(429, "envelope_exceeded", {"Retry-After": "40000"})
        if r.url.host == "api.sp.example"
        else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 429
    assert slept == []


@pytest.mark.parametrize(("status", "waits"), [(429, [7]), (503, [7]), (404, [])])
def test_a_service_providers_limit_alone_is_waited_for(
    registry: FakeRegistry, tmp_path: Path, slept: list[float], status: int, waits: list[float]
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    answers = [error(status, "refused", {"Retry-After": "7"})]
    registry.script = lambda r: (
        answers.pop() if r.url.host == "api.sp.example" and answers else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == (200 if waits else status)
    assert [int(seconds) for seconds in slept] == waits


def test_a_call_follows_no_redirect(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    registry.script = lambda r: (
        httpx.Response(307, headers={"Location": "https://evil.example/"})
        if r.url.host == "api.sp.example"
        else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 307
    assert len(calls(registry)) == 1


def test_a_stale_token_is_renewed_once(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    challenge = {"WWW-Authenticate": 'DPoP error="invalid_token", algs="EdDSA"'}
    registry.script = lambda r: (
        error(401, "invalid_token", challenge)
        if r.url.host == "api.sp.example" and r.headers["Authorization"] == "DPoP token-1"
        else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    assert [r.headers["Authorization"] for r in calls(registry)] == ["DPoP token-1", "DPoP token-2"]


def test_refusal_that_persists_with_a_new_token_is_returned(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    challenge = {"WWW-Authenticate": 'DPoP error="invalid_token", algs="EdDSA"'}
    registry.script = lambda r: (
        error(401, "invalid_token", challenge) if r.url.host == "api.sp.example" else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    assert len(calls(registry)) == 2


def test_a_revoked_grant_leaves_the_service_provider_s_refusal(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    run(client.get_token(SP_ID))
    registry.grants = [grant("revoked")]
    challenge = {"WWW-Authenticate": 'DPoP error="invalid_token", algs="EdDSA"'}
    registry.script = lambda r: (
        error(401, "invalid_token", challenge) if r.url.host == "api.sp.example" else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401


def test_the_clear_text_audience_of_a_registry_in_error_gets_no_proof(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    body = {"id": SP_ID, "name": "SP", "audience": "http://api.sp.example"}
    registry.script = lambda r: (
        httpx.Response(200, json=body) if "service-providers" in r.url.path else None
    )
    with pytest.raises(Exception, match="https"):
        run(client.call(SP_ID, "GET", "/x"))
    assert calls(registry) == []


def test_every_page_of_grants_and_events_is_read(registry: FakeRegistry, tmp_path: Path) -> None:
    client = registered(registry, tmp_path)
    last = 150

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path != "/v1/audit/events":
            return None
        page = int(request.url.params.get("after", "0"))
        following = str(page + 1) if page < last else None
        return httpx.Response(200, json={"results": [{"id": page}], "next": following})

    registry.script = script
    assert [event["id"] for event in run(client.audit_events())] == list(range(last + 1))


@pytest.mark.parametrize(
    ("cursors", "asked"), [(itertools.repeat("c"), 2), (map(str, itertools.count()), 3)]
)
def test_a_list_that_never_ends_is_an_error(
    registry: FakeRegistry,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cursors: Iterator[str],
    asked: int,
) -> None:
    monkeypatch.setattr("agentauth.sdk.grants_and_tokens._MAX_PAGES", 3)
    client = registered(registry, tmp_path)
    registry.script = lambda _request: httpx.Response(
        200, json={"results": [{"id": 1}], "next": next(cursors)}
    )
    with pytest.raises(RegistryError, match="does not end"):
        run(client.audit_events())
    assert len(registry.sent("GET", "/v1/audit/events")) == asked
