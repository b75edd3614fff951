"""httpx.Auth and the auth of requests: a fresh proof for each attempt, no credentials elsewhere."""

import asyncio
import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from agentauth.protocol.dpop import verify_proof
from agentauth.protocol.errors import InvalidRequestError
from agentauth.sdk import Action, AgentAuthClient, AudienceError, NoGrantError
from agentauth.sdk.httpx_auth import AgentAuth
from agentauth.sdk.registry_answers import Confirmation
from agentauth.sdk.requests_auth import RequestsAuth
from agentauth.sdk.sync_client import SyncAgentAuthClient
from agentauth.sdk.tests import hostile_server as hostile
from agentauth.sdk.tests.fake_registry import CALENDAR, SP_ID, FakeRegistry, grant, run
from agentauth.sdk.tests.hostile_server import answer, dripping
from tests.http_server import Quiet, serving

CREDENTIALS = ("authorization", "dpop")
NONCE = 'DPoP error="use_dpop_nonce", algs="EdDSA"'
STALE = 'DPoP error="invalid_token", algs="EdDSA"'

Said = tuple[int, dict[str, str], dict[str, Any]]


@dataclass
class Api:
    """A service provider on a real socket: answers in turn, then 200 to what is signed.

    `seen` are the method, path, headers (lower case) and body of each request.
    """

    url: str = ""
    answers: list[Said] = field(default_factory=list)
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)

    def answer(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Said:
        self.seen.append((method, path, headers, body))
        if "dpop" not in headers:
            if path.startswith("/public"):
                return (200, {}, {"public": True})
            return (401, {"WWW-Authenticate": STALE}, {"error": "invalid_token"})
        proof = verify_proof(
            headers["dpop"],
            expected_method=method,
            expected_url=self.url + path.split("?", maxsplit=1)[0],
            access_token=headers["authorization"].removeprefix("DPoP "),
            body=None,
            now=int(time.time()),
        )
        earlier = [each[2].get("dpop") for each in self.seen[:-1]]
        assert headers["dpop"] not in earlier, "a proof was sent twice"
        return self.answers.pop(0) if self.answers else (200, {}, {"nonce": proof.nonce})

    @property
    def signed(self) -> list[dict[str, str]]:
        return [headers for _, _, headers, _ in self.seen if "dpop" in headers]


@pytest.fixture
def apis() -> Iterator[tuple[Api, Api]]:
    """The service provider, and another host."""
    with running(Api()) as first, running(Api()) as other:
        yield first, other


@contextmanager
def running(api: Api) -> Iterator[Api]:
    class Handler(Quiet):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, more, said = api.answer(self.command, self.path, headers, self.body())
            self.say(status, said, more)

        do_GET = do_POST = handle_any  # noqa: N815

    with serving(Handler) as api.url:
        yield api


class Kind:
    """One HTTP client with our auth: `send` returns the status and the JSON."""

    def __init__(self, registry: FakeRegistry, tmp_path: Path) -> None:
        self.registry, self.path = registry, tmp_path / "agent.json"

    def send(self, method: str, url: str, **more: Any) -> tuple[int, Any]:
        raise NotImplementedError


class AsyncHttpx(Kind):
    def send(self, method: str, url: str, **more: Any) -> tuple[int, Any]:
        client = self.registry.client(self.path.parent)
        options = {name: more.pop(name) for name in list(more) if name in OPTIONS}

        async def send() -> httpx.Response:
            auth = AgentAuth(client, SP_ID, **options)
            async with httpx.AsyncClient(auth=auth, trust_env=False, follow_redirects=True) as http:
                return await http.request(method, url, **more)

        response = asyncio.run(send())
        return response.status_code, response.json()


class SyncHttpx(Kind):
    def send(self, method: str, url: str, **more: Any) -> tuple[int, Any]:
        options = {name: more.pop(name) for name in list(more) if name in OPTIONS}
        with (
            sync_client(self.registry, self.path) as client,
            httpx.Client(
                auth=AgentAuth(client, SP_ID, **options), trust_env=False, follow_redirects=True
            ) as http,
        ):
            response = http.request(method, url, **more)
            return response.status_code, response.json()


class Requests(Kind):
    def send(self, method: str, url: str, **more: Any) -> tuple[int, Any]:
        options = {name: more.pop(name) for name in list(more) if name in OPTIONS}
        if "content" in more:
            more["data"] = more.pop("content")
        with sync_client(self.registry, self.path) as client, requests.Session() as session:
            session.trust_env = False
            session.auth = RequestsAuth(client, SP_ID, **options)
            response = session.request(method, url, timeout=10, **more)
            return response.status_code, response.json()


OPTIONS = {"action", "ask_for", "on_pending", "on_step_up"}


def sync_client(registry: FakeRegistry, path: Path) -> SyncAgentAuthClient:
    client = SyncAgentAuthClient("https://registry.example.com", key_file=path)
    client._client._registry.transport = httpx.MockTransport(registry)
    return client


@pytest.fixture(params=[AsyncHttpx, SyncHttpx, Requests])
def kind(
    request: pytest.FixtureRequest,
    registry: FakeRegistry,
    tmp_path: Path,
    apis: tuple[Api, Api],
    monkeypatch: pytest.MonkeyPatch,
) -> Kind:
    monkeypatch.setattr("agentauth.sdk.tests.fake_registry.AUDIENCE", f"{apis[0].url}/v1")
    run(registry.client(tmp_path).register(CALENDAR))
    registry.grants = [grant()]
    made: Kind = request.param(registry, tmp_path)
    return made


def test_each_request_is_signed_with_a_fresh_proof(kind: Kind, apis: tuple[Api, Api]) -> None:
    for _ in range(2):
        assert kind.send("GET", f"{apis[0].url}/v1/events?day=1") == (200, {"nonce": None})
    assert len({headers["dpop"] for headers in apis[0].signed}) == 2


def test_a_nonce_is_asked_for_once_and_sent(kind: Kind, apis: tuple[Api, Api]) -> None:
    apis[0].answers = [(401, {"WWW-Authenticate": NONCE, "DPoP-Nonce": "n1"}, {})]
    assert kind.send("POST", f"{apis[0].url}/v1/events", content=b"hello") == (
        200,
        {"nonce": "n1"},
    )
    assert [body for _, _, _, body in apis[0].seen] == [b"hello", b"hello"]
    assert len({headers["idempotency-key"] for headers in apis[0].signed}) == 1


def test_a_server_that_refuses_its_own_nonces_is_not_asked_for_ever(
    kind: Kind, apis: tuple[Api, Api]
) -> None:
    apis[0].answers = [
        (401, {"WWW-Authenticate": NONCE, "DPoP-Nonce": f"n{number}"}, {}) for number in range(9)
    ]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == 401
    assert len(apis[0].seen) == 2


def test_a_refused_token_is_renewed_once(kind: Kind, apis: tuple[Api, Api]) -> None:
    stale = (401, {"WWW-Authenticate": STALE}, {"error": "invalid_token"})
    apis[0].answers = [stale]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == 200
    assert len({headers["authorization"] for headers in apis[0].signed}) == 2
    apis[0].answers = [stale, stale, stale]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == 401
    assert len(apis[0].signed) == 4


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_carries_credentials_to_another_host(
    kind: Kind, apis: tuple[Api, Api], status: int
) -> None:
    api, other = apis
    for target in (f"{other.url}/public/x", f"{other.url}/v1/private"):
        api.answers = [(status, {"Location": target}, {})]
        answered, _ = kind.send("GET", f"{api.url}/v1/events")
        assert answered == (200 if "public" in target else 401)
    assert len(other.seen) == 2
    assert all(name not in headers for _, _, headers, _ in other.seen for name in CREDENTIALS)


def test_no_redirect_carries_credentials_outside_the_audience(
    kind: Kind, apis: tuple[Api, Api]
) -> None:
    apis[0].answers = [(302, {"Location": "/other/x"}, {})]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == 401
    assert [path for _, path, headers, _ in apis[0].seen if "dpop" in headers] == ["/v1/events"]


@pytest.mark.parametrize(("status", "method"), [(302, "GET"), (303, "GET"), (307, "POST")])
def test_a_redirect_within_the_audience_is_signed_again(
    kind: Kind, apis: tuple[Api, Api], status: int, method: str
) -> None:
    apis[0].answers = [(status, {"Location": "/v1/moved?x=1"}, {})]
    assert kind.send("POST", f"{apis[0].url}/v1/events", content=b"hello")[0] == 200
    last = apis[0].seen[-1]
    assert (last[0], last[1]) == (method, "/v1/moved?x=1")
    assert last[3] == (b"hello" if method == "POST" else b"")


def test_endless_redirects_end(kind: Kind, apis: tuple[Api, Api]) -> None:
    apis[0].answers = [(302, {"Location": f"/v1/{number}"}, {}) for number in range(50)]
    kind.send("GET", f"{apis[0].url}/v1/events")
    assert len(apis[0].signed) <= 7


def test_a_request_outside_the_audience_is_not_sent(kind: Kind, apis: tuple[Api, Api]) -> None:
    for url in (f"{apis[1].url}/v1/events", f"{apis[0].url}/v2/events"):
        with pytest.raises(AudienceError):
            kind.send("GET", url)
    assert apis[0].seen == apis[1].seen == []


def test_a_wait_that_the_server_asks_for_is_short_and_done(
    kind: Kind, apis: tuple[Api, Api]
) -> None:
    apis[0].answers = [(503, {"Retry-After": "0"}, {}), (429, {"Retry-After": "0"}, {})]
    assert kind.send("POST", f"{apis[0].url}/v1/events", content=b"x")[0] == 200
    assert len({headers["idempotency-key"] for headers in apis[0].signed}) == 1
    apis[0].answers = [(503, {"Retry-After": "3600"}, {})]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == 503


@pytest.mark.parametrize("status", [400, 403, 404, 409, 422])
def test_no_other_refusal_is_retried(kind: Kind, apis: tuple[Api, Api], status: int) -> None:
    apis[0].answers = [(status, {"Retry-After": "0"}, {"error": "x"})]
    assert kind.send("GET", f"{apis[0].url}/v1/events")[0] == status
    assert len(apis[0].seen) == 1


def test_a_body_that_is_a_stream_is_sent_once(kind: Kind, apis: tuple[Api, Api]) -> None:
    refusals: list[Said] = [
        (401, {"WWW-Authenticate": STALE}, {}),
        (503, {"Retry-After": "0"}, {}),
    ]
    for refusal in refusals:
        apis[0].answers = [refusal]
        assert send_stream(kind, f"{apis[0].url}/v1/x")[0] == refusal[0]
    assert [body for _, _, _, body in apis[0].seen] == [b"hello"] * 2


def test_no_person_is_asked_about_a_body_that_cannot_be_repeated(
    kind: Kind, apis: tuple[Api, Api]
) -> None:
    told: list[Confirmation] = []
    apis[0].answers = [(403, {}, {"error": "step_up_required", "confirmation_id": "c-1"})]
    assert send_stream(kind, f"{apis[0].url}/v1/x", on_step_up=told.append)[0] == 403
    assert told == []
    assert kind.registry.sent("GET", "/v1/confirmations/c-1") == []


def send_stream(kind: Kind, url: str, **more: Any) -> tuple[int, Any]:
    body: Any = iter([b"hello"])
    if isinstance(kind, AsyncHttpx):
        body = agen()
    elif isinstance(kind, Requests):
        body = io.BytesIO(b"hello")
    # http.server reads no chunked body.
    return kind.send("POST", url, content=body, headers={"Content-Length": "5"}, **more)


async def agen() -> Any:
    yield b"hello"


def test_the_body_of_an_answer_that_is_not_the_last_is_not_waited_for(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_first, drained = [True], []
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nConnection: close\r\n\r\n"

    def send(connection: socket.socket) -> None:
        if not is_first.pop():
            connection.sendall(answer(b"{}"))
            return
        is_first.append(False)
        dripping(head, b"x", b"x")(connection)
        drained.append("all of it")

    with hostile.serving(send) as server:
        monkeypatch.setattr("agentauth.sdk.tests.fake_registry.AUDIENCE", f"{server.url}/v1")
        assert kind.send("GET", f"{server.url}/v1/x") == (200, {})
        assert drained == []


def test_a_call_that_no_grant_covers_is_not_sent(kind: Kind, apis: tuple[Api, Api]) -> None:
    with pytest.raises(NoGrantError, match="request_grant"):
        kind.send("GET", f"{apis[0].url}/v1/events", action=Action("delete", "files"))
    assert apis[0].seen == []


def test_the_action_may_be_a_function_of_the_request(kind: Kind, apis: tuple[Api, Api]) -> None:
    seen: list[str] = []

    def action(request: Any) -> Action:
        seen.append(str(request.url))
        return Action("read", "calendar")

    kind.send("GET", f"{apis[0].url}/v1/events", action=action)
    assert seen == [f"{apis[0].url}/v1/events"]


def test_a_step_up_is_confirmed_and_repeated_under_one_key(
    kind: Kind, apis: tuple[Api, Api]
) -> None:
    identifier = "01900000-0000-7000-8000-000000000009"
    apis[0].answers = [
        (
            403,
            {},
            {
                "error": "step_up_required",
                "reason": "confirm_above",
                "confirmation_id": identifier,
            },
        )
    ]
    states = ["confirmed", "pending"]
    kind.registry.script = lambda request: (
        httpx.Response(
            200,
            json={
                "confirmation_id": identifier,
                "status": states.pop(),
                "approval_url": "https://registry.example.com/confirmations/x/",
            },
        )
        if request.url.path.startswith("/v1/confirmations/")
        else None
    )
    told: list[Confirmation] = []
    status, _ = kind.send("POST", f"{apis[0].url}/v1/pay", content=b"1", on_step_up=told.append)
    assert status == 200
    assert len(told) == 1
    assert len({headers["idempotency-key"] for headers in apis[0].signed}) == 1


def test_the_caller_s_own_operation_key_is_kept(kind: Kind, apis: tuple[Api, Api]) -> None:
    key = {"Idempotency-Key": "payment-7"}
    kind.send("POST", f"{apis[0].url}/v1/pay", content=b"1", headers=key)
    assert [headers["idempotency-key"] for headers in apis[0].signed] == ["payment-7"]


def test_no_proof_is_sent_twice_below_the_auth_of_requests(
    registry: FakeRegistry,
    tmp_path: Path,
    apis: tuple[Api, Api],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{apis[0].url}/v1"
    monkeypatch.setattr("agentauth.sdk.tests.fake_registry.AUDIENCE", url)
    run(registry.client(tmp_path).register(CALENDAR))
    registry.grants = [grant()]
    apis[0].answers = [(503, {}, {})]
    retrying = Retry(3, status_forcelist=[503], allowed_methods=None, backoff_factor=0)
    with sync_client(registry, tmp_path / "agent.json") as client, requests.Session() as session:
        session.trust_env = False
        session.auth = RequestsAuth(client, SP_ID)
        session.mount(f"{url}/pay", HTTPAdapter(max_retries=retrying))
        with pytest.raises(InvalidRequestError, match="max_retries"):
            session.post(f"{url}/pay", data=b"1", timeout=10)
        prepared = session.prepare_request(requests.Request("POST", f"{url}/lost", data=b"1"))
        # The hook that removes the credentials of an answered request never runs.
        prepared.hooks = {"response": []}
        assert session.send(prepared).status_code == 200
        with pytest.raises(InvalidRequestError, match="sent already"):
            session.send(prepared)
    assert [path for _, path, _, _ in apis[0].seen] == ["/v1/pay", "/v1/lost"]


def test_each_http_client_says_which_agent_client_it_needs(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    plain: Any = AgentAuthClient("https://registry.example.com", key_file=tmp_path / "k")
    with sync_client(registry, tmp_path / "k") as blocking:
        with pytest.raises(InvalidRequestError, match="SyncAgentAuthClient"):
            RequestsAuth(plain, SP_ID)
        with (
            httpx.Client(auth=AgentAuth(plain, SP_ID)) as http,
            pytest.raises(InvalidRequestError, match="needs AgentAuth\\(SyncAgentAuthClient"),
        ):
            http.get("http://127.0.0.1:1/")

        async def wrong() -> None:
            async with httpx.AsyncClient(auth=AgentAuth(blocking, SP_ID)) as http:
                await http.get("http://127.0.0.1:1/")

        with pytest.raises(InvalidRequestError, match="needs AgentAuth\\(AgentAuthClient"):
            asyncio.run(wrong())
