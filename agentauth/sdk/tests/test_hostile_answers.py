"""Whatever a server answers, a client ends in time, keeps little in memory, and raises only
errors of the SDK.
"""

import gzip
import json
import os
import re
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import httpx
import pytest

from agentauth.cli import main
from agentauth.cli.agent_options import Connection
from agentauth.protocol.errors import (
    MAX_MESSAGE,
    AgentAuthError,
    InvalidRequestError,
    TemporarilyUnavailableError,
)
from agentauth.sdk import (
    AgentAuthClient,
    LogClient,
    RegistryError,
    UnknownOutcomeError,
    VerifierClient,
)
from agentauth.sdk.tests.both_clients import both
from agentauth.sdk.tests.fake_registry import (
    CALENDAR,
    SP_ID,
    URL,
    FakeRegistry,
    grant,
    registered,
    run,
)
from agentauth.sdk.tests.hostile_server import (
    HostileServer,
    Sending,
    answer,
    dripping,
    endless,
    serving,
    whole,
)
from agentauth.sdk.tests.log_folders import LOG_KEY
from agentauth.sdk.tests.test_verifier import ASK, YES
from tests.certificates import self_signed

__all__ = ["both"]

# A drip takes twenty times as long.
SECONDS: Final = 0.25
AGENT: Final = {"agent_id": "a", "status": "active", "expires_at": "2099-01-01T00:00:00Z"}
# Both verify and registration would accept this answer.
GOOD: Final = json.dumps(YES | AGENT).encode()
LENGTH: Final = f"Content-Length: {len(GOOD)}\r\n\r\n".encode()
OK: Final = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
ZIPPED: Final = answer(gzip.compress(GOOD), "Content-Encoding: gzip")
UNZIPPABLE: Final = answer(b"notgzip", "Content-Encoding: gzip")
BROKEN: Final = {
    "compressed": whole(ZIPPED),
    "of several encodings": whole(answer(b"notgzip", "Content-Encoding: br, zstd, gzip")),
    "unzippable": whole(UNZIPPABLE),
    "without end": endless,
    "a drip of headers": dripping(OK + b"X: ", b"x", b"\r\n" + LENGTH + GOOD),
    "a drip of interim answers": dripping(b"", b"HTTP/1.1 103 Early\r\n\r\n", OK + LENGTH + GOOD),
    "a drip of space": dripping(
        OK + f"Content-Length: {len(GOOD) + 100}\r\n\r\n".encode(), b" ", GOOD
    ),
    "a drip of a chunk's extension": dripping(
        OK + f"Transfer-Encoding: chunked\r\n\r\n{len(GOOD):x};".encode(),
        b"x",
        b"\r\n" + GOOD + b"\r\n0\r\n\r\n",
    ),
    "no HTTP": whole(b"\x00\x01\x02\r\n\r\n"),
    "cut off": whole(OK + b"Content-Length: 100\r\n\r\n{"),
    "a redirect to nowhere": whole(answer(b"", "Location: http://[::1", status=302)),
}
broken = pytest.mark.parametrize("send", BROKEN.values(), ids=BROKEN)


@pytest.fixture
def serve() -> Iterator[Callable[[Sending], HostileServer]]:
    opened = []

    def start(send: Sending) -> HostileServer:
        opened.append(serving(send))
        return opened[-1].__enter__()

    yield start
    for each in opened:
        each.__exit__(None, None, None)


Serve = Callable[[Sending], HostileServer]


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch, slept: list[float]) -> None:
    """Each exchange of an agent may take `SECONDS`, each pause none."""
    for module in ("registry_http", "agent_registry_client", "log_client"):
        monkeypatch.setattr(f"agentauth.sdk.{module}.TIMEOUT_SECONDS", SECONDS)


def agent_at(server: HostileServer, tmp_path: Path) -> AgentAuthClient:
    return AgentAuthClient(server.url, key_file=tmp_path / "agent.json", name="x")


@pytest.mark.usefixtures("clock", "both")
@pytest.mark.parametrize("name", sorted(BROKEN.keys() - {"a redirect to nowhere"}))
def test_VB_15_a_broken_answer_of_verify_is_an_unknown_outcome(serve: Serve, name: str) -> None:
    server = serve(BROKEN[name])
    client = VerifierClient(server.url, "id", "secret", timeout=SECONDS)
    with client, pytest.raises(UnknownOutcomeError):
        client.verify(**ASK)


@pytest.mark.usefixtures("clock", "both")
def test_a_redirect_of_verify_is_no_decision_and_is_not_followed(serve: Serve) -> None:
    server = serve(BROKEN["a redirect to nowhere"])
    # Long enough that no try is repeated on a machine that stalls.
    client = VerifierClient(server.url, "id", "secret", timeout=60)
    with client, pytest.raises(TemporarilyUnavailableError):
        client.verify(**ASK)
    assert len(server.heads) == 1


@pytest.mark.usefixtures("clock", "both")
@pytest.mark.parametrize(
    "url", ["https://a..b", f"https://{'a' * 64}.example", "https://☃.example"]
)
def test_a_registry_whose_name_cannot_exist_gives_no_decision(url: str) -> None:
    with pytest.raises(TemporarilyUnavailableError):
        VerifierClient(url, "id", "secret", timeout=SECONDS).verify(**ASK)


@broken
@pytest.mark.usefixtures("hurried")
def test_a_broken_answer_to_an_agent_is_an_outage(
    serve: Serve, tmp_path: Path, send: Sending
) -> None:
    server = serve(send)
    with pytest.raises(TemporarilyUnavailableError):
        run(agent_at(server, tmp_path).register(CALENDAR))


@broken
@pytest.mark.usefixtures("hurried")
def test_a_broken_answer_of_the_log_is_an_outage(serve: Serve, send: Sending) -> None:
    server = serve(send)
    with pytest.raises(TemporarilyUnavailableError):
        run(LogClient(server.url, [LOG_KEY.vkey]).checkpoint())


@pytest.mark.usefixtures("clock", "both")
def test_no_client_asks_for_a_compressed_answer(serve: Serve, tmp_path: Path) -> None:
    server = serve(whole(answer(GOOD)))
    with VerifierClient(server.url, "id", "secret", timeout=60) as client:
        client.verify(**ASK)
    run(agent_at(server, tmp_path).register(CALENDAR))
    assert len(server.heads) >= 2
    for head in server.heads:
        assert re.findall(rb"(?i)accept-encoding: (.*)\r", head) == [b"identity"]


@pytest.mark.usefixtures("clock", "both")
def test_a_drip_within_TLS_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    certificate = self_signed(tmp_path)
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(certificate, tmp_path / "proxy.key")
    trusted = ssl.create_default_context(cafile=str(certificate))
    for name in ("verifier", "async_verifier"):
        monkeypatch.setattr(f"agentauth.sdk.{name}.ssl_context", lambda: trusted)
    with serving(whole(answer(json.dumps(YES).encode())), own) as server:
        with VerifierClient(server.url, "id", "secret", timeout=60) as client:
            assert client.verify(**ASK).grant_id == "g"
        server.send = BROKEN["a drip of space"]
        client = VerifierClient(server.url, "id", "secret", timeout=SECONDS)
        with client, pytest.raises(UnknownOutcomeError):
            client.verify(**ASK)


@pytest.mark.usefixtures("clock", "both")
def test_a_proxy_is_held_to_the_same_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_PROXY", "no_proxy", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", serve(BROKEN["a drip of headers"]).url)
    client = VerifierClient(URL, "id", "secret", timeout=SECONDS)
    with client, pytest.raises(UnknownOutcomeError, match="did not answer in time"):
        client.verify(**ASK)


@pytest.mark.parametrize(
    ("send", "said"),
    [(whole(ZIPPED), "sent a compressed answer"), (endless, "sent more than 16,777,216 bytes")],
)
@pytest.mark.usefixtures("slept")
def test_the_error_says_why_an_answer_was_not_read(
    serve: Serve, tmp_path: Path, send: Sending, said: str
) -> None:
    server = serve(send)
    with pytest.raises(TemporarilyUnavailableError, match=f"The registry at {server.url} {said}"):
        run(agent_at(server, tmp_path).register(CALENDAR))


@pytest.mark.usefixtures("clock", "both")
def test_an_answer_of_verify_is_read_up_to_its_own_limit(serve: Serve) -> None:
    client = VerifierClient(serve(endless).url, "id", "secret", timeout=60)
    with client, pytest.raises(UnknownOutcomeError, match="sent more than 1,048,576 bytes"):
        client.verify(**ASK)


class Endless(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body of 4 MiB that counts the bytes that were read."""

    def __init__(self) -> None:
        self.read = 0

    def __iter__(self) -> Iterator[bytes]:
        for _ in range(64):
            self.read += 65_536
            yield bytes(65_536)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self:
            yield part


@pytest.mark.usefixtures("clock", "both")
def test_through_a_transport_verify_reads_no_more_than_its_limit() -> None:
    sent: list[Endless] = []

    def answers(_request: httpx.Request) -> httpx.Response:
        sent.append(Endless())
        return httpx.Response(200, stream=sent[-1])

    transport = httpx.MockTransport(answers)
    client = VerifierClient(URL, "id", "secret", timeout=60, transport=transport)
    with client, pytest.raises(UnknownOutcomeError, match="sent more than 1,048,576 bytes"):
        client.verify(**ASK)
    # The part that exceeds the limit is the last one read.
    assert {each.read for each in sent} == {1_048_576 + 65_536}


# ---- a service provider's answer


class BesideRegistry(httpx.AsyncBaseTransport):
    """The registry is the fake one; the service provider is a server on a socket."""

    def __init__(self, registry: FakeRegistry, server: HostileServer) -> None:
        self._registry, self._server = httpx.MockTransport(registry), server
        self._sockets = httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.host == httpx.URL(URL).host:
            return await self._registry.handle_async_request(request)
        request.url = httpx.URL(self._server.url + request.url.path)
        return await self._sockets.handle_async_request(request)

    async def aclose(self) -> None:
        await self._sockets.aclose()


@pytest.mark.parametrize("name", ["no HTTP", "cut off", "a redirect to nowhere"])
def test_a_broken_answer_to_a_call_is_an_outage(
    registry: FakeRegistry, tmp_path: Path, slept: list[float], serve: Serve, name: str
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    server = serve(BROKEN[name])
    client._registry.transport = BesideRegistry(registry, server)
    with pytest.raises(TemporarilyUnavailableError, match="The service provider"):
        run(client.call(SP_ID, "POST", "/v1/x"))
    assert len(server.heads) == 4
    assert (
        len(
            {head.lower().split(b"idempotency-key: ")[1].split(b"\r\n")[0] for head in server.heads}
        )
        == 1
    )


@pytest.mark.parametrize(
    ("send", "limits", "said"),
    [
        (whole(ZIPPED), {}, "sent a compressed answer"),
        (whole(answer(b"", "Content-Encoding: gzip, gzip", status=403)), {}, "sent a compressed"),
        (endless, {}, "sent more than 16,777,216 bytes"),
        (whole(answer(b"x" * 101)), {"max_bytes": 100}, "sent more than 100 bytes"),
    ],
    ids=["compressed", "twice", "endless", "too long for this call"],
)
def test_an_answer_that_a_call_does_not_read_is_asked_for_once(
    registry: FakeRegistry,
    tmp_path: Path,
    serve: Serve,
    send: Sending,
    limits: Any,
    said: str,
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    server = serve(send)
    client._registry.transport = BesideRegistry(registry, server)
    with pytest.raises(TemporarilyUnavailableError, match=f"The service provider {said}"):
        run(client.call(SP_ID, "POST", "/v1/x", **limits))
    (head,) = server.heads
    assert re.findall(rb"(?i)accept-encoding: (\w+)", head) == [b"identity"]


@pytest.mark.parametrize(
    ("method", "send"),
    [
        ("GET", whole(answer(b"x" * 100))),
        ("HEAD", whole(OK + b"Content-Encoding: gzip\r\nContent-Length: 9000\r\n\r\n")),
        ("GET", whole(OK.replace(b"200", b"304") + b"Content-Encoding: gzip\r\n\r\n")),
    ],
    ids=["at the limit", "without a body", "not modified"],
)
def test_every_other_answer_to_a_call_is_given_to_the_caller(
    registry: FakeRegistry, tmp_path: Path, serve: Serve, method: str, send: Sending
) -> None:
    client = registered(registry, tmp_path)
    registry.grants = [grant()]
    client._registry.transport = BesideRegistry(registry, serve(send))
    found = run(client.call(SP_ID, method, "/v1/x", max_bytes=100))
    assert found.content == (b"" if "Content-Encoding" in found.headers else b"x" * 100)
    assert (found.request.method, found.http_version) == (method, "HTTP/1.1")
    assert found.elapsed.total_seconds() > 0


@pytest.mark.parametrize("given", [0, -1, True, "100", None, 1.5])
def test_a_limit_that_is_no_size_is_refused(
    registry: FakeRegistry, tmp_path: Path, given: Any
) -> None:
    client = registered(registry, tmp_path)
    with pytest.raises(InvalidRequestError, match="max_bytes"):
        run(client.call(SP_ID, "GET", "/v1/x", max_bytes=given))


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, registry: FakeRegistry, tmp_path: Path, serve: Serve
) -> Callable[[Sending], None]:
    """The commands of a registered agent with a grant, at a service provider that answers this."""

    def start(send: Sending) -> None:
        client = registered(registry, tmp_path)
        registry.grants = [grant()]
        client._registry.transport = BesideRegistry(registry, serve(send))

        def given(_connection: Connection, **_options: Any) -> AgentAuthClient:
            return client

        monkeypatch.setattr(Connection, "client", given)

    return start


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize(
    ("body", "header"),
    [
        (b"[" * 200_000 + b"]" * 200_000, "Content-Type: application/json"),
        (b"[" * 900 + b"]" * 900, "Content-Type: application/json"),
        (b"9" * 6_000, "Content-Type: application/json"),
        (b"{[x", "Content-Type: text/plain; charset=undefined"),
        (b"{[x", "Content-Type: text/plain; charset=idna"),
        (b"{[x", "Content-Type: text/plain; charset=zlib_codec"),
        (b"{[\xff", "Content-Type: text/plain; charset=utf-8"),
    ],
    ids=["deep", "deep enough", "a long number", "undefined", "idna", "zlib", "no UTF-8"],
)
def test_the_command_call_shows_any_answer(
    shell: Callable[[Sending], None],
    capsys: pytest.CaptureFixture[str],
    body: bytes,
    header: str,
    more: list[str],
) -> None:
    shell(whole(answer(body, header)))
    assert main(["call", SP_ID, "GET", "/v1/x", *more]) == 0
    assert body.decode(errors="replace")[:3] in (
        json.loads(capsys.readouterr().out)["body"] if more else capsys.readouterr().out
    )


# ---- what is shown


def command(
    server: HostileServer, tmp_path: Path, **environment: str
) -> "subprocess.CompletedProcess[bytes]":
    told = [
        "-c",
        "read:calendar",
        "--registry",
        server.url,
        "--key-file",
        str(tmp_path / "agent.json"),
    ]
    return subprocess.run(
        [sys.executable, "-m", "agentauth.cli", "register", *told],
        env=os.environ | environment,
        capture_output=True,
        check=False,
        timeout=60,
    )


def test_a_terminal_without_unicode_is_shown_escapes(serve: Serve, tmp_path: Path) -> None:
    body = json.dumps(AGENT | {"agent_id": "漢x"}).encode()
    done = command(serve(whole(answer(body))), tmp_path, PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u6f22x" in done.stdout


def long_refusal(**members: Any) -> Sending:
    body = {"error": "invalid_request", "error_description": "A" * 900_000, "reason": "B" * 900_000}
    return whole(answer(json.dumps(body | members).encode(), status=400))


@pytest.mark.parametrize("error", ["invalid_request", "E" * 900_000])
def test_a_long_description_is_cut(serve: Serve, tmp_path: Path, error: str) -> None:
    server = serve(long_refusal(error=error))
    with pytest.raises(AgentAuthError) as refused:
        run(agent_at(server, tmp_path).register(CALENDAR))
    assert isinstance(
        refused.value, InvalidRequestError if error == "invalid_request" else RegistryError
    )
    assert refused.value.description == "A" * MAX_MESSAGE + "…"
    assert len(str(refused.value)) < 2 * MAX_MESSAGE + 100
    assert len(command(server, tmp_path).stderr) < 2 * MAX_MESSAGE + 100


@pytest.mark.usefixtures("clock", "both")
def test_so_is_one_of_verify(serve: Serve) -> None:
    no = {"valid": False, "error": "E" * 900_000, "reason": "R" * 900_000}
    for send in (long_refusal(error="x"), whole(answer(json.dumps(no | {"reason": "r"}).encode()))):
        client = VerifierClient(serve(send).url, "id", "secret", timeout=60)
        with client, pytest.raises(AgentAuthError) as refused:
            client.verify(**ASK)
        assert len(str(refused.value)) < 2 * MAX_MESSAGE + 100


@pytest.mark.parametrize("name", AGENT)
def test_a_long_member_of_an_answer_is_not_shown(serve: Serve, tmp_path: Path, name: str) -> None:
    server = serve(whole(answer(json.dumps(AGENT | {name: "A" * 900_000}).encode())))
    done = command(server, tmp_path)
    assert len(done.stdout + done.stderr) < 1_000
