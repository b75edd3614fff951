"""Connections to verify are kept, and an answer is never that of another question."""

import asyncio
import contextlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvloop

from agentauth.protocol.errors import TemporarilyUnavailableError
from agentauth.sdk import UnknownOutcomeError, VerifierClient
from agentauth.sdk.async_verifier import AsyncVerifierClient
from agentauth.sdk.tests.test_verifier import ASK, YES
from agentauth.sdk.verify_connections import IDLE_SECONDS, uses_proxy

ASK_ONCE: dict[str, Any] = ASK


@dataclass
class Server:
    """Answers with the token of each question as the agent's id. `after` acts on a connection once
    its answer was sent.
    """

    url: str = ""
    opened: int = 0
    asked: int = 0
    after: Callable[[socket.socket], None] = lambda _connection: None
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while True:
                length = 0
                line = stream.readline()
                if not line:
                    break
                while line not in {b"\r\n", b""}:
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    line = stream.readline()
                question = json.loads(stream.read(length))
                self.asked += 1
                body = json.dumps(YES | {"agent": {"id": question["token"]}}).encode()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                connection.sendall(head + body)
                self.after(connection)
        self.ended.release()


@pytest.fixture
def server() -> Iterator[Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    made = Server(f"http://127.0.0.1:{listener.getsockname()[1]}")
    stopped = threading.Event()
    threads = []

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            if stopped.is_set():
                connection.close()
                return
            made.opened += 1
            threads.append(threading.Thread(target=made.serve, args=(connection,)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    yield made
    stopped.set()
    socket.create_connection(listener.getsockname()).close()
    accepting.join()
    listener.close()
    for thread in threads:
        thread.join()


Ask = Callable[..., str]


async def several(
    url: str, tokens: list[str], between: Callable[[], Any], *, blocking: bool
) -> list[str]:
    """`blocking`: the event loop sees nothing of what arrives between two questions."""
    found = []
    async with AsyncVerifierClient(url, "id", "secret") as client:
        for token in tokens:
            found.append((await client.verify(**ASK | {"token": token})).agent_id)
            between() if blocking else await asyncio.to_thread(between)
    return found


def several_blocking(url: str, tokens: list[str], between: Callable[[], Any]) -> list[str]:
    found = []
    with VerifierClient(url, "id", "secret") as client:
        for token in tokens:
            found.append(client.verify(**ASK | {"token": token}).agent_id)
            between()
    return found


@pytest.fixture(params=["sync", "async", "blocked", "uvloop"])
def ask_in_turn(request: pytest.FixtureRequest) -> Callable[..., list[str]]:
    """Ask about these tokens, one after the other, on one client; the ids that were answered."""

    def ask(url: str, tokens: list[str], between: Callable[[], Any] = int) -> list[str]:
        if request.param == "sync":
            return several_blocking(url, tokens, between)
        if request.param == "uvloop":
            return uvloop.run(several(url, tokens, between, blocking=False))
        return asyncio.run(several(url, tokens, between, blocking=request.param == "blocked"))

    return ask


Turn = Callable[..., list[str]]
TOKENS = ["a", "b", "c"]


def test_one_connection_carries_all_questions(server: Server, ask_in_turn: Turn) -> None:
    assert ask_in_turn(server.url, TOKENS) == TOKENS
    assert server.opened == 1


def test_a_connection_that_the_server_closed_is_not_used(server: Server, ask_in_turn: Turn) -> None:
    server.after = lambda connection: connection.shutdown(socket.SHUT_RDWR)
    assert ask_in_turn(server.url, TOKENS, server.ended.acquire) == TOKENS
    assert (server.opened, server.asked) == (3, 3)


def test_an_answer_that_nothing_asked_for_is_not_taken_for_the_next(
    server: Server, ask_in_turn: Turn
) -> None:
    """A yes to another request, sent in advance."""
    body = json.dumps(YES | {"agent": {"id": "evil"}}).encode()
    taken, sent = threading.Semaphore(0), threading.Semaphore(0)

    def send(connection: socket.socket) -> None:
        # Not together with the answer before, which the client would notice at once.
        taken.acquire()
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with contextlib.suppress(OSError):
            connection.sendall(head + body)
        sent.release()

    def wait() -> None:
        taken.release()
        sent.acquire()

    server.after = send
    assert ask_in_turn(server.url, TOKENS, wait) == TOKENS
    assert server.opened == 3


def test_threads_have_connections_of_their_own(server: Server) -> None:
    """Eight at once, each with its own answer; no more connections than threads."""
    with VerifierClient(server.url, "id", "secret") as client:
        found: dict[str, str] = {}

        def work(number: int) -> None:
            for turn in range(20):
                token = f"{number}-{turn}"
                found[token] = client.verify(**ASK | {"token": token}).agent_id

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(found) == 160
    assert all(token == agent for token, agent in found.items())
    assert server.opened <= 8


def test_tasks_have_connections_of_their_own(server: Server) -> None:
    async def ask() -> list[str]:
        async with AsyncVerifierClient(server.url, "id", "secret") as client:
            for _ in range(2):
                answers = await asyncio.gather(
                    *(client.verify(**ASK | {"token": str(each)}) for each in range(8))
                )
            return [each.agent_id for each in answers]

    assert asyncio.run(ask()) == [str(each) for each in range(8)]
    assert server.opened == 8


def test_a_cancelled_question_leaves_no_answer_behind(server: Server) -> None:
    """Its answer must not be read as that of the next question on the connection."""

    async def ask() -> str:
        async with AsyncVerifierClient(server.url, "id", "secret") as client:
            await client.verify(**ASK)
            for _ in range(3):
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0):
                        await client.verify(**ASK | {"token": "cancelled"})
            return (await client.verify(**ASK | {"token": "mine"})).agent_id

    assert asyncio.run(ask()) == "mine"


def test_a_client_outlives_its_event_loop(server: Server) -> None:
    client = AsyncVerifierClient(server.url, "id", "secret")

    async def ask(token: str, *, close: bool) -> str:
        found = (await client.verify(**ASK | {"token": token})).agent_id
        if close:
            await client.close()
        return found

    assert asyncio.run(ask("a", close=True)) == "a"
    assert asyncio.run(ask("b", close=True)) == "b"


def test_an_idle_connection_is_closed_in_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with VerifierClient(server.url, "id", "secret") as client:
        client.verify(**ASK)
        [(connection, since)] = client._exchanges._idle  # type: ignore[union-attr]
        client._exchanges._idle[0] = (connection, since - IDLE_SECONDS)  # type: ignore[union-attr]
        client.verify(**ASK)
        assert connection.fileno() == -1
    assert server.opened == 2


def test_a_forked_process_opens_connections_of_its_own(server: Server) -> None:
    with VerifierClient(server.url, "id", "secret") as client:
        client.verify(**ASK)
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                code = 0 if client.verify(**ASK | {"token": "child"}).agent_id == "child" else 1
            os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        assert client.verify(**ASK | {"token": "parent"}).agent_id == "parent"
    assert server.opened == 2


def test_nothing_listens(ask_in_turn: Turn) -> None:
    # Held meanwhile, or a server of another test could take it.
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(UnknownOutcomeError, match="cannot be reached") as unknown:
            ask_in_turn(url, ["a"])
    assert isinstance(unknown.value, TemporarilyUnavailableError)


def test_a_proxy_is_never_used_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert not uses_proxy("http://localhost:8000")
    assert not uses_proxy("http://127.0.0.1:8000")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert uses_proxy("https://registry.example.com")
