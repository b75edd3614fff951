"""Load shedding: a call beyond what one process may hold gets 503 at once and leaves nothing."""

import asyncio
import json
import uuid
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

from agentauth.protocol.decision_rules import Refuse
from agentauth.protocol.errors import IdempotencyMismatchError, TemporarilyUnavailableError
from registry.models import ServiceProvider
from verifier import asgi_endpoint as endpoints
from verifier import verification
from verifier.asgi_endpoint import MAX_IN_FLIGHT, Edge, Endpoint, Request, Response
from verifier.services import replay_cache_lease
from verifier.services.verifier_process import VerifierProcess
from verifier.stores import EarlyRefusal, ProviderKey
from verifier.stores.database_decisions import DecisionRequest
from verifier.verification import VerifyAnswer

BODY = json.dumps({"token": "t", "method": "GET", "url": "http://localhost/"}).encode()


class _Follower:
    def held_provider(self, _digest: bytes) -> None:
        return None

    async def provider(self, _authorization: str) -> ServiceProvider:
        return ServiceProvider(id=uuid.uuid4())


class _Verifier:
    """Answers when it is released."""

    def __init__(self, *, is_full: bool = False) -> None:
        self.cached_state = _Follower()
        self.go = asyncio.Event()
        self._is_full = is_full

    def check_room(self) -> None:
        if self._is_full:
            raise TemporarilyUnavailableError

    async def verify(self, **_asked: Any) -> VerifyAnswer:
        await self.go.wait()
        return VerifyAnswer({"valid": True})


class _Delegate:
    async def __call__(self, request: Request, /) -> Response:
        assert request.scope["raw_path"] == b"/health/live", "nothing else here is for the view"
        return Response(200, b"{}")

    def stop(self) -> None:
        pass


def failed(error: Exception) -> Response:
    assert isinstance(error, TemporarilyUnavailableError)
    return Response(503, b"{}", ((b"retry-after", b"1"),))


async def ask(
    endpoint: Endpoint, path: str = "/v1/verify", *, body: bytes = BODY, key: bytes = b""
) -> dict[str, Any]:
    """The start of the response to one call."""
    sent: list[Any] = []
    scope = {
        "type": "http",
        "method": "POST",
        "scheme": "http",
        "raw_path": path.encode(),
        "path": path,
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", b"Basic x"),
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            *([(b"idempotency-key", key)] if key else []),
        ],
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await endpoint(scope, receive, send)
    return cast("dict[str, Any]", sent[0])


def served(verifier: _Verifier, observed: list[tuple[str, int]] | None = None) -> Endpoint:
    async def start() -> tuple[VerifierProcess, Edge]:
        raise NotImplementedError

    endpoint = Endpoint(start)
    endpoint._verifier = cast("VerifierProcess", verifier)
    seen = [] if observed is None else observed
    endpoint._edge = Edge(
        delegate=_Delegate(),
        failed=failed,
        begin=lambda: "id",
        observe=lambda route, status, _: seen.append((route, status)),
        headers=(),
    )
    return endpoint


def test_RF_19_calls_over_the_bound_get_503_at_once_and_it_recovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "_LONG_TURN_SECONDS", 60.0)

    async def work() -> None:
        verifier = _Verifier()
        observed: list[tuple[str, int]] = []
        endpoint = served(verifier, observed)
        held = [asyncio.create_task(ask(endpoint)) for _ in range(MAX_IN_FLIGHT)]
        await asyncio.sleep(0)
        # It does not wait: no earlier call has been answered yet.
        for _ in range(3):
            refused = await asyncio.wait_for(ask(endpoint), 1)
            assert refused["status"] == 503
            assert (b"retry-after", b"1") in refused["headers"]
        # They are counted in the metrics like any answer.
        assert observed == [("/v1/verify", 503)] * 3
        # A health probe is not a call: a process that is only busy must not be restarted.
        assert (await asyncio.wait_for(ask(endpoint, "/health/live"), 1))["status"] == 200
        assert not any(each.done() for each in held)
        verifier.go.set()
        assert {answer["status"] for answer in await asyncio.gather(*held)} == {200}
        # Refused calls hold no place.
        assert (await ask(endpoint))["status"] == 200

    asyncio.run(work())


class _Milliseconds:
    """The clock of the endpoint."""

    def __init__(self) -> None:
        self.ms = 0

    def __call__(self) -> float:
        return self.ms / 1000


def test_RF_19_consecutive_long_loop_turns_shed_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = _Milliseconds()
    monkeypatch.setattr(endpoints, "time", SimpleNamespace(perf_counter=clock))

    class Slow(_Verifier):
        async def verify(self, **asked: Any) -> VerifyAnswer:
            clock.ms += 1
            return await super().verify(**asked)

    async def turn(endpoint: Endpoint, calls: int) -> int:
        """Return how many of these calls are shed."""
        asked = [asyncio.create_task(ask(endpoint)) for _ in range(calls)]
        await asyncio.sleep(0)
        told = sum(each.done() for each in asked)
        cast("_Verifier", endpoint._verifier).go.set()
        assert {answer["status"] for answer in await asyncio.gather(*asked)} <= {200, 503}
        cast("_Verifier", endpoint._verifier).go.clear()
        return told

    async def work() -> None:
        endpoint = served(Slow())
        # After a single standstill, all that arrived meanwhile is answered.
        assert await turn(endpoint, 200) == 0
        # Turns still take 100 ms. After 0.25 s of that, only the calls that are never timed are
        # begun, and as many as start within 25 ms.
        told = [await turn(endpoint, 100) for _ in range(4)]
        assert told == [0, 100 - 32 - 26, 100 - 32 - 26, 100 - 32 - 26]
        # It recovers after a while without long turns; then a single standstill sheds nothing.
        clock.ms += 251
        assert await turn(endpoint, 100) == 0

    asyncio.run(work())


def test_RF_19_few_calls_are_begun_however_long_a_turn_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoints, "_LONG_TURN_SECONDS", 0.0)
    monkeypatch.setattr(endpoints, "_LASTING_SECONDS", 0.0)

    async def work() -> None:
        verifier = _Verifier()
        endpoint = served(verifier)
        asked = [asyncio.create_task(ask(endpoint)) for _ in range(32)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in asked)
        verifier.go.set()
        await asyncio.gather(*asked)

    asyncio.run(work())


@pytest.mark.parametrize(
    ("operation_key", "provider_key"), [("k", None), (None, object()), (None, None)]
)
def test_RF_19_call_for_the_database_is_shed_before_signature_check(
    operation_key: str | None, provider_key: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[object] = []

    def check_room() -> None:
        raise TemporarilyUnavailableError

    def prepared(request: object, **_: object) -> None:
        checked.append(request)
        raise TemporarilyUnavailableError

    monkeypatch.setattr(verification, "prepare", prepared)
    with pytest.raises(TemporarilyUnavailableError):
        asked(monkeypatch, SimpleNamespace(check_room=check_room), operation_key, provider_key)
    # A call without the agent's key may be decided by Redis alone, so it is still prepared.
    assert bool(checked) is (operation_key is None)


def test_RF_19_refused_named_call_takes_no_place_in_the_full_queue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any agent can cause calls with bad proofs, and answers to named calls need rows."""
    decided: list[DecisionRequest] = []

    def check_room() -> None:
        raise TemporarilyUnavailableError

    async def decide(asked: DecisionRequest) -> Refuse:
        decided.append(asked)
        return Refuse("invalid_token", "unknown")

    provider_key = ProviderKey(b"digest", b"body")
    monkeypatch.setattr(verification, "prepare", refused)
    with pytest.raises(TemporarilyUnavailableError):
        asked(
            monkeypatch, SimpleNamespace(check_room=check_room, decide=decide), None, provider_key
        )
    assert not decided


def refused(_request: object, *, service_provider: ServiceProvider, **given: Any) -> EarlyRefusal:
    """The refusal of a proof under a valid token."""
    return EarlyRefusal(
        service_provider_id=service_provider.id,
        refuse=Refuse("invalid_dpop_proof", "signature"),
        claims=cast("Any", SimpleNamespace()),
        action=None,
        operation_key=None,
        dry_run=False,
        actor=given["actor"],
        now=given["now"],
        leaked_key=None,
        provider_key=given["provider_key"],
    )


def test_recorded_refusal_is_returned_even_if_recording_would_wait() -> None:
    """The decision itself commits the mismatch of an agent's key."""

    async def run(_unit: object) -> None:
        raise TemporarilyUnavailableError

    error = IdempotencyMismatchError("It was used.")
    error.recorded = True
    given: Any = (ServiceProvider(), None, datetime.now(UTC), "POST v1/verify")
    assert (
        asyncio.run(verification.record_error(cast("Any", SimpleNamespace(run=run)), error, *given))
        is error
    )


def asked(
    monkeypatch: pytest.MonkeyPatch,
    committer: object,
    operation_key: str | None,
    provider_key: object,
) -> None:
    """Make one call through a verifier with this committer."""
    replay_epoch = SimpleNamespace(
        nonce_server=lambda _: "", requires_nonce=lambda _: False, kind="redis"
    )
    monkeypatch.setattr(verification, "nonces_of", lambda *_: None)
    monkeypatch.setattr(
        replay_cache_lease,
        "LEASE",
        SimpleNamespace(last_epoch=lambda: replay_epoch, check_halt=lambda: None),
    )
    cached_state = SimpleNamespace(token_keys=dict, wait_for_fresh_state=lambda: asyncio.sleep(0))
    verifier = VerifierProcess(
        cached_state=cast("Any", cached_state), servers=None, count=lambda *_: None
    )
    monkeypatch.setattr(verifier, "_committer", committer)
    call = verifier.verify(
        service_provider=ServiceProvider(id=uuid.uuid4()),
        request=cast("Any", SimpleNamespace(operation_key=operation_key, untrusted_token="")),
        provider_key=cast("Any", provider_key),
        actor=cast("Any", SimpleNamespace(id="")),
        now=datetime.now(UTC),
    )
    asyncio.run(call)


@pytest.mark.parametrize("is_full", [True, False])
@pytest.mark.parametrize(
    ("body", "key"),
    [(BODY.replace(b"}", b', "idempotency_key": "k"}'), b""), (BODY, b"k"), (BODY, b"")],
    ids=["named by the agent", "named by the service provider", "not named"],
)
def test_RF_19_call_with_an_operation_key_is_shed_before_it_is_parsed(
    body: bytes, key: bytes, *, is_full: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    parse = endpoints._object

    def noted(body: bytes | None) -> object:
        read.append(body or b"")
        return parse(body)

    monkeypatch.setattr(endpoints, "_object", noted)
    verifier = _Verifier(is_full=is_full)
    verifier.go.set()
    refused = is_full and body is not BODY
    answer = asyncio.run(ask(served(verifier), body=body, key=key))
    assert (answer["status"], read) == ((503, []) if refused else (200, [body]))
