"""The synchronous client: the same surface, any number of threads, one way to end."""

import asyncio
import inspect
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.protocol.errors import InvalidStateError, TemporarilyUnavailableError
from agentauth.sdk import AgentAuthClient, Grant
from agentauth.sdk.httpx_auth import AgentAuth
from agentauth.sdk.sync_client import SyncAgentAuthClient
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    GRANT_ID,
    SP_ID,
    TERMS,
    URL,
    FakeRegistry,
    grant,
    run,
)

# What only the synchronous one has: its thread is started and ended.
OWN = {"close", "run"}


def surface(kind: type[Any]) -> dict[str, Any]:
    return {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("_") and inspect.isfunction(value)
    }


@pytest.fixture
def client(registry: FakeRegistry, tmp_path: Path) -> Any:
    run(registry.client(tmp_path).register(CALENDAR))
    registry.grants = [grant()]
    made = SyncAgentAuthClient(URL, key_file=tmp_path / "agent.json")
    made._client._registry.transport = httpx.MockTransport(registry)
    with made:
        yield made


def test_both_clients_have_the_same_names_and_arguments() -> None:
    plain, blocking = surface(AgentAuthClient), surface(SyncAgentAuthClient)
    assert blocking.keys() - OWN == plain.keys()
    for name, method in plain.items():
        assert inspect.signature(method) == inspect.signature(blocking[name]), name
    assert inspect.signature(AgentAuthClient.__init__) == inspect.signature(
        SyncAgentAuthClient.__init__
    )


def test_no_method_of_the_synchronous_client_is_a_coroutine() -> None:
    blocking = surface(SyncAgentAuthClient)
    assert not [name for name in blocking if inspect.iscoroutinefunction(blocking[name])]


def test_a_public_attribute_of_one_client_is_one_of_the_other(tmp_path: Path) -> None:
    plain = AgentAuthClient(URL, key_file=tmp_path / "k")
    with SyncAgentAuthClient(URL, key_file=tmp_path / "k") as blocking:
        for name in vars(plain):
            if not name.startswith("_"):
                assert hasattr(blocking, name)
        assert blocking.keys.name == plain.keys.name
        assert blocking.registry_url == plain.registry_url


def test_every_method_does_what_the_other_client_does(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    assert client.identity().agent_id
    assert client.register().status == "active"
    assert client.ensure_grant(SP_ID, CALENDAR).grant_id == GRANT_ID
    assert client.request_grant(SP_ID, CALENDAR).grant_id == GRANT_ID
    assert client.wait_for_decision(GRANT_ID).status == "approved"
    assert client.get_grant(GRANT_ID).status == "approved"
    assert client.get_token(SP_ID).startswith("token-")
    client.forget_tokens(SP_ID)
    assert client.authenticate_headers(SP_ID, "GET", "/v1/x").keys() == {"Authorization", "DPoP"}
    assert client.call(SP_ID, "GET", "/v1/x").status_code == 200
    with pytest.raises(TemporarilyUnavailableError, match="more than 5 bytes"):
        client.call(SP_ID, "GET", "/v1/x", max_bytes=5)
    assert client.service_provider(SP_ID).id == SP_ID
    assert [each.grant_id for each in client.list_grants()] == [GRANT_ID]
    assert client.renew_manifest().status == "active"


def test_threads_share_one_token(registry: FakeRegistry, client: SyncAgentAuthClient) -> None:
    with ThreadPoolExecutor(20) as pool:
        tokens = set(pool.map(lambda _: client.get_token(SP_ID), range(100)))
    assert len(tokens) == 1
    assert len(registry.sent("POST", "/v1/tokens")) == 1


def test_a_request_that_never_arrived_frees_its_turn_for_other_threads(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    """A turn that ends in the caller's thread wakes a call that waits in the client's."""
    limits = {"max_requests_per_minute": 6_000, "max_burst": 1}
    registry.grants = [grant(granted=TERMS | {"envelope": limits})]
    arrived, may_fail = threading.Event(), threading.Event()

    def unreachable(request: httpx.Request) -> httpx.Response:
        arrived.set()
        assert may_fail.wait(10)
        raise httpx.ConnectError("refused", request=request)

    def send() -> None:
        auth = AgentAuth(client, SP_ID)
        with (
            httpx.Client(transport=httpx.MockTransport(unreachable), auth=auth) as http,
            pytest.raises(httpx.ConnectError),
        ):
            http.get("https://api.sp.example/v1/x")

    with ThreadPoolExecutor(2) as pool:
        failing = pool.submit(send)
        assert arrived.wait(10)
        waiting = pool.submit(client.call, SP_ID, "GET", "/v1/x")
        may_fail.set()
        failing.result(10)
        assert waiting.result(10).status_code == 200


def test_a_callback_may_call_the_client(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    registry.grants = [grant("pending")]
    seen: list[str] = []

    def on_pending(pending: Grant) -> None:
        seen.append(client.get_grant(pending.grant_id).status)
        registry.grants = [grant()]

    assert client.wait_for_decision(GRANT_ID, on_pending=on_pending).status == "approved"
    assert seen == ["pending"]


def test_a_callback_of_a_signing_adapter_may_call_the_client(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    registry.grants = [grant("pending")]
    seen: list[str] = []

    def on_pending(pending: Grant) -> None:
        seen.append(client.get_grant(pending.grant_id).status)
        registry.grants = [grant()]

    auth = AgentAuth(client, SP_ID, on_pending=on_pending)
    with httpx.Client(transport=httpx.MockTransport(registry), auth=auth) as http:
        assert http.get("https://api.sp.example/v1/x").status_code == 200
    assert seen == ["pending"]


def test_what_a_callback_raises_reaches_the_caller(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    registry.grants = [grant("pending")]

    def on_pending(pending: Grant) -> None:
        raise LookupError(pending.grant_id)

    with pytest.raises(LookupError, match=GRANT_ID):
        client.wait_for_decision(GRANT_ID, on_pending=on_pending)


def test_close_ends_the_calls_in_progress(
    registry: FakeRegistry, client: SyncAgentAuthClient
) -> None:
    registry.grants = [grant("pending")]
    waiting, ended = threading.Event(), list[BaseException]()

    def wait() -> None:
        try:
            client.wait_for_decision(GRANT_ID, on_pending=lambda _: waiting.set())
        except InvalidStateError as error:
            ended.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    assert waiting.wait(10)
    client.close()
    thread.join(10)
    assert [str(error) for error in ended] == [
        "invalid_state: This client is closed. Make a new SyncAgentAuthClient."
    ]


def test_a_closed_client_says_so(client: SyncAgentAuthClient) -> None:
    client.get_token(SP_ID)
    client.close()
    client.close()
    with pytest.raises(InvalidStateError, match="closed"):
        client.get_token(SP_ID)
    assert "agentauth" not in {thread.name for thread in threading.enumerate()}


def test_an_unused_client_starts_no_thread(tmp_path: Path) -> None:
    before = threading.active_count()
    with SyncAgentAuthClient(URL, key_file=tmp_path / "k"):
        assert threading.active_count() == before


def test_a_call_from_its_own_loop_is_refused_not_stuck(client: SyncAgentAuthClient) -> None:
    async def wrong() -> str:
        return client.get_token(SP_ID)

    with pytest.raises(InvalidStateError, match="Use AgentAuthClient"):
        client.run(wrong())


def test_a_call_beside_a_running_loop_works(client: SyncAgentAuthClient) -> None:
    async def in_a_notebook() -> str:
        return client.get_token(SP_ID)

    assert asyncio.run(in_a_notebook()).startswith("token-")


def test_an_interrupted_caller_cancels_its_call(
    registry: FakeRegistry, client: SyncAgentAuthClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = threading.Event()

    async def long() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    def interrupted(
        coroutine: Any, loop: asyncio.AbstractEventLoop, start: Callable[..., Any]
    ) -> Any:
        future = start(coroutine, loop)
        result = future.result

        def raise_first() -> Any:
            future.result = result
            raise KeyboardInterrupt

        future.result = raise_first
        return future

    start = asyncio.run_coroutine_threadsafe
    monkeypatch.setattr(
        asyncio,
        "run_coroutine_threadsafe",
        lambda coroutine, loop: interrupted(coroutine, loop, start),
    )
    with pytest.raises(KeyboardInterrupt):
        client.run(long())
    assert cancelled.wait(10)


def test_a_forked_child_has_a_thread_of_its_own(client: SyncAgentAuthClient) -> None:
    client.get_token(SP_ID)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover — another process
        done = b"no"
        try:
            client.forget_tokens(SP_ID)
            done = client.get_token(SP_ID).encode()
        finally:
            os.write(writing, done)
            os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read().startswith(b"token-")
