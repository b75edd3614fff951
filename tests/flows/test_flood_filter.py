"""A web server flooded by outsiders refuses them before Django, on kept connections, and only them.

It has its own server: the flood uses up the limit all outsiders share.
"""

import secrets
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from agentauth.protocol.dpop import make_proof
from agentauth.protocol.keys import LocalSigner, PrivateKey
from tests.actors import Scene, scene
from tests.flows.pair import READ
from tests.flows.test_kept_connections import body_size
from tests.live import LiveRegistry

pytestmark = pytest.mark.flow
OWN = "/v1/agents/me"
# An outsider that still reaches Django, and one refused before: the limit regains one call each 0.1
# s.
NOT_KNOWN = {401, 429}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    registry = LiveRegistry(
        tmp_path_factory.mktemp("strangers"), workers=1, env={"RATE_LIMITS": "on"}
    )
    registry.prepare()
    registry.start()
    yield scene(registry, capabilities=[READ], envelope={})
    registry.stop()


@pytest.fixture
def flooded(place: Scene) -> Scene:
    """The outsiders' limit has just been used up."""
    with connect(place) as connection:
        before_django = False
        while not before_django:
            connection.sendall(b"".join(request(place, stranger()) for _ in range(20)))
            before_django = any(not answer.by_django for answer in answers(connection, 20))
    return place


@dataclass
class Answer:
    status: int
    by_django: bool
    closes: bool


def stranger() -> LocalSigner:
    return LocalSigner(PrivateKey.generate())


def request(place: Scene, signer: LocalSigner, *headers: str) -> bytes:
    url = place.registry.url + OWN
    proof = make_proof(
        signer, method="GET", url=url, iat=int(time.time()), jti=secrets.token_urlsafe(16)
    )
    lines = [f"GET {OWN} HTTP/1.1", f"Host: {urlsplit(url).netloc}", f"DPoP: {proof}", *headers]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def connect(place: Scene) -> socket.socket:
    return socket.create_connection(("127.0.0.1", place.registry.port), timeout=30)


def answers(connection: socket.socket, count: int) -> list[Answer]:
    """The next answers. Those from Django name gunicorn as the server."""
    found: list[Answer] = []
    received = b""
    while len(found) < count:
        head, end, rest = received.partition(b"\r\n\r\n")
        size = body_size(head.lower(), rest) if end else None
        if size is None or len(rest) < size:
            part = connection.recv(65_536)
            assert part, f"it hung up after {found}"
            received += part
            continue
        lines = head.lower()
        closes = b"\r\nconnection: close" in lines
        found.append(Answer(int(head[9:12]), b"\r\nserver: gunicorn" in lines, closes))
        received = rest[size:]
    return found


@pytest.mark.long
def test_SA_10_in_a_flood_agents_are_answered_and_strangers_are_not(flooded: Scene) -> None:
    asked = [*[stranger() for _ in range(20)], flooded.signer] * 3
    with connect(flooded) as connection:
        # In one packet: requests behind a refused one are answered.
        connection.sendall(b"".join(request(flooded, signer) for signer in asked))
        told = answers(connection, len(asked))
    for signer, answer in zip(asked, told, strict=True):
        assert answer.status in ({200} if signer is flooded.signer else NOT_KNOWN)
        assert not answer.closes
    assert any(not answer.by_django for answer in told)


def test_SA_10_a_refusal_says_that_the_connection_ends(flooded: Scene) -> None:
    for _ in range(20):
        with connect(flooded) as connection:
            connection.sendall(request(flooded, stranger(), "Connection: close"))
            [answer] = answers(connection, 1)
            assert answer.status in NOT_KNOWN
            assert answer.closes
            assert connection.recv(1) == b""


def test_SA_10_strangers_whose_keys_are_looked_up_hold_no_thread(flooded: Scene) -> None:
    many = [connect(flooded) for _ in range(200)]
    try:
        for connection in many:
            connection.sendall(request(flooded, stranger()))
        with connect(flooded) as connection:
            connection.sendall(request(flooded, flooded.signer))
            assert answers(connection, 1)[0].status == 200
        told = [answers(connection, 1)[0] for connection in many]
        assert {answer.status for answer in told} <= NOT_KNOWN
        assert any(not answer.by_django for answer in told)
    finally:
        for connection in many:
            connection.close()


@pytest.mark.long
def test_SA_10_many_refused_in_one_packet_end_nothing(place: Scene) -> None:
    host = urlsplit(place.registry.url).netloc
    registration = f"POST /v1/agents HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n\r\n".encode()
    with connect(place) as connection:
        connection.sendall(registration * 800)
        told = answers(connection, 800)
        assert {answer.status for answer in told} == {400, 429}
        assert [answer.by_django for answer in told].count(False) > 400
        connection.sendall(request(place, place.signer))
        assert answers(connection, 1)[0].status == 200
