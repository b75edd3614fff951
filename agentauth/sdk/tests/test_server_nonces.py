"""Nonces on the agent's side: used as soon as a server requires one, kept for that server, and
never sent to another.
"""

from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from agentauth import AgentAuthClient
from agentauth.protocol.errors import ProofNonceRequiredError
from agentauth.sdk.registry_http import ATTEMPTS
from agentauth.sdk.tests.fake_registry import (
    GRANT_ID,
    SP_ID,
    URL,
    FakeRegistry,
    error,
    grant,
    registered,
    run,
)

CHALLENGE = {"WWW-Authenticate": 'DPoP error="use_dpop_nonce", algs="EdDSA"'}


def granted(registry: FakeRegistry, tmp_path: Path) -> AgentAuthClient:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    return client


# ---- the registry's


def test_a_nonce_is_put_into_the_next_proof(registry: FakeRegistry, tmp_path: Path) -> None:
    client = granted(registry, tmp_path)
    registry.script = lambda _request: (
        error(401, "use_dpop_nonce", {"DPoP-Nonce": "n1"})
        if registry.proofs[-1].nonce is None
        else None
    )
    run(client.get_grant(GRANT_ID))
    assert [proof.nonce for proof in registry.proofs[-2:]] == [None, "n1"]
    # From now on it is sent at once.
    run(client.get_grant(GRANT_ID))
    assert registry.proofs[-1].nonce == "n1"
    assert len(registry.proofs) == 4


def test_DN_1_a_token_call_that_needs_a_nonce_is_one_operation(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = granted(registry, tmp_path)
    registry.script = lambda r: (
        error(400, "use_dpop_nonce", {"DPoP-Nonce": "n1"})
        if r.url.path == "/v1/tokens" and registry.proofs[-1].nonce is None
        else None
    )
    run(client.get_token(SP_ID))
    tries = registry.sent("POST", "/v1/tokens")
    assert len(tries) == 2
    assert len({r.headers["Idempotency-Key"] for r in tries}) == 1
    assert slept == []


def test_a_nonce_that_comes_with_a_good_answer_is_used_from_then_on(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = granted(registry, tmp_path)
    given = iter(["n1", "n2"])
    registry.script = lambda _request: httpx.Response(
        200, json=grant(), headers={"DPoP-Nonce": nonce} if (nonce := next(given, "")) else {}
    )
    for _ in range(4):
        run(client.get_grant(GRANT_ID))
    assert [proof.nonce for proof in registry.proofs[-4:]] == [None, "n1", "n2", "n2"]


def test_a_server_that_likes_none_of_its_nonces_is_asked_twice(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = granted(registry, tmp_path)
    numbers = iter(range(100))
    registry.script = lambda _request: error(
        401, "use_dpop_nonce", {"DPoP-Nonce": f"n{next(numbers)}"}
    )
    with pytest.raises(ProofNonceRequiredError):
        run(client.get_grant(GRANT_ID))
    assert len(registry.sent("GET", f"/v1/grants/{GRANT_ID}")) == 2
    assert slept == []


@pytest.mark.parametrize(
    "header", [{}, {"DPoP-Nonce": "a, b"}, {"DPoP-Nonce": "x" * 513}, {"DPoP-Nonce": ""}]
)
def test_a_nonce_that_is_refused_and_not_replaced_is_forgotten(
    registry: FakeRegistry, tmp_path: Path, header: dict[str, str]
) -> None:
    client = granted(registry, tmp_path)
    registry.script = lambda _request: httpx.Response(
        200, json=grant(), headers={"DPoP-Nonce": "n1"}
    )
    run(client.get_grant(GRANT_ID))
    registry.script = lambda _request: (
        error(401, "use_dpop_nonce", header) if registry.proofs[-1].nonce else None
    )
    with pytest.raises(ProofNonceRequiredError):
        run(client.get_grant(GRANT_ID))
    run(client.get_grant(GRANT_ID))
    assert registry.proofs[-1].nonce is None


def unavailable_then_a_nonce(
    tries: int, challenge: dict[str, str]
) -> Callable[[bool], httpx.Response | None]:
    """Answers of a server that begins an epoch: 503 at first, then it requires a nonce."""
    answers = iter([*[error(503, "temporarily_unavailable", {"Retry-After": "1"})] * tries, None])

    def script(has_nonce: bool) -> httpx.Response | None:
        if unavailable := next(answers, None):
            return unavailable
        return (
            None if has_nonce else error(401, "use_dpop_nonce", {**challenge, "DPoP-Nonce": "n1"})
        )

    return script


@pytest.mark.parametrize("native", [True, False])
def test_a_nonce_that_the_last_try_is_asked_for_is_still_sent(
    registry: FakeRegistry, tmp_path: Path, slept: list[float], *, native: bool
) -> None:
    """As after a failover of the replay cache: first unavailable, then it begins an epoch."""
    client = granted(registry, tmp_path)
    run(client.get_token(SP_ID))
    says = unavailable_then_a_nonce(ATTEMPTS - 1, {} if native else CHALLENGE)
    registry.script = lambda request: (
        says(registry.proofs[-1].nonce is not None)
        if native or request.url.host == "api.sp.example"
        else None
    )
    if native:
        assert run(client.get_grant(GRANT_ID)).grant_id == GRANT_ID
    else:
        assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    assert len(slept) == ATTEMPTS - 1


# ---- a service provider's


def sent_to(registry: FakeRegistry, *, native: bool) -> list[str | None]:
    """The nonces of the proofs the registry got, or those the service provider got."""
    pairs = zip(registry.requests, registry.proofs, strict=True)
    return [proof.nonce for request, proof in pairs if str(request.url).startswith(URL) is native]


def asking(registry: FakeRegistry, *nonces: str) -> None:
    """The service provider accepts only the last of `nonces`, and issues them in order."""
    given = iter(nonces)

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.host != "api.sp.example" or registry.proofs[-1].nonce == nonces[-1]:
            return None
        return error(401, "use_dpop_nonce", {**CHALLENGE, "DPoP-Nonce": next(given)})

    registry.script = script


def test_a_nonce_that_ended_with_its_epoch_costs_one_more_try(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    """The service provider's verifier moved: the nonces it issued before are no longer valid."""
    client = granted(registry, tmp_path)
    asking(registry, "epoch-1")
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    asking(registry, "epoch-2")
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    first, second = "epoch-1", "epoch-2"
    assert sent_to(registry, native=False) == [None, first, first, second, second]
    assert slept == []


def test_DN_2_a_call_is_signed_again_with_the_nonce_and_the_same_key(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = granted(registry, tmp_path)
    asking(registry, "n1")
    assert run(client.call(SP_ID, "POST", "/v1/payments", json={})).status_code == 200
    calls = [request for request in registry.requests if request.url.host == "api.sp.example"]
    assert len({request.headers["Idempotency-Key"] for request in calls}) == 1
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    assert sent_to(registry, native=False) == [None, "n1", "n1"]
    # The registry never issued one.
    assert set(sent_to(registry, native=True)) == {None}
    assert slept == []


def test_a_service_provider_that_likes_none_of_its_nonces_is_asked_twice(
    registry: FakeRegistry, tmp_path: Path, slept: list[float]
) -> None:
    client = granted(registry, tmp_path)
    asking(registry, "n1", "n2", "n3")
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    assert sent_to(registry, native=False) == [None, "n1"]
    # The nonce that it sent last is tried first.
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 200
    assert sent_to(registry, native=False) == [None, "n1", "n2", "n3"]


def test_the_nonce_that_was_refused_is_not_tried_again(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = granted(registry, tmp_path)
    asking(registry, "n1")
    run(client.call(SP_ID, "GET", "/v1/x"))
    registry.script = lambda r: (
        error(401, "use_dpop_nonce", {**CHALLENGE, "DPoP-Nonce": "n1"})
        if r.url.host == "api.sp.example"
        else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    assert sent_to(registry, native=False) == [None, "n1", "n1"]


def test_a_service_provider_that_refuses_and_gives_none_gets_none(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = granted(registry, tmp_path)
    asking(registry, "n1")
    run(client.call(SP_ID, "GET", "/v1/x"))
    registry.script = lambda r: (
        error(401, "use_dpop_nonce", CHALLENGE) if r.url.host == "api.sp.example" else None
    )
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    assert run(client.call(SP_ID, "GET", "/v1/x")).status_code == 401
    assert sent_to(registry, native=False) == [None, "n1", "n1", None]


def test_DN_3_the_fresh_nonce_of_a_good_answer_is_used_from_then_on(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = granted(registry, tmp_path)
    registry.script = lambda r: (
        httpx.Response(200, headers={"DPoP-Nonce": "n9"})
        if r.url.host == "api.sp.example"
        else None
    )
    for _ in range(2):
        run(client.call(SP_ID, "GET", "/v1/x"))
    assert sent_to(registry, native=False) == [None, "n9"]
    # Also by a caller that sends the request itself.
    headers = run(client.authenticate_headers(SP_ID, "GET", "/v1/x"))
    registry(httpx.Request("GET", "https://api.sp.example/v1/x", headers=headers))
    headers = run(client.authenticate_headers(SP_ID, "GET", "/v1/x", nonce="theirs"))
    registry(httpx.Request("GET", "https://api.sp.example/v1/x", headers=headers))
    assert sent_to(registry, native=False)[-2:] == ["n9", "theirs"]


def test_two_service_providers_at_one_origin_have_their_own_nonces(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    client = granted(registry, tmp_path)
    audiences = {"one": "https://api.sp.example/one", "two": "https://api.sp.example/two"}
    registry.grants = [
        grant(
            grant_id=f"01900000-0000-7000-8000-00000000000{n}",
            service_provider={"id": f"sp-{name}"},
        )
        for n, name in enumerate(audiences)
    ]

    def script(request: httpx.Request) -> httpx.Response | None:
        name = request.url.path.rsplit("/", 1)[1]
        if "service-providers" in request.url.path:
            return httpx.Response(
                200, json={"id": f"sp-{name}", "name": name, "audience": audiences[name]}
            )
        if request.url.host == "api.sp.example":
            return httpx.Response(
                200, headers={"DPoP-Nonce": f"of-{request.url.path.split('/')[1]}"}
            )
        return None

    registry.script = script
    for name in ("one", "two", "one", "two"):
        run(client.call(name, "GET", f"/{name}/x"))
    assert sent_to(registry, native=False) == [None, None, "of-one", "of-two"]
