"""Which requests the lean endpoint accepts as sent over TLS, and failed starts; no server."""

import asyncio
from typing import Any, cast

import pytest
from pytest_django.fixtures import Settings

from tests.endpoint_modes import scope
from verifier.asgi_endpoint import Edge, Endpoint, Request, Response
from verifier.services.verifier_process import VerifierProcess
from verifier.tests.test_json_accept_check import AXIOS, CHROME, FIREFOX

GIVEN = [
    (b"host", b"localhost"),
    (b"authorization", b"Basic x"),
    (b"content-type", b"application/json"),
]


class _Follower:
    """Knows no service provider, and records the lookups."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def held_provider(self, _digest: bytes) -> None:
        return None

    async def provider(self, authorization: str) -> None:
        self.asked.append(authorization)


class _Verifier:
    def __init__(self) -> None:
        self.cached_state = _Follower()


class _View:
    async def __call__(self, request: Request, /) -> Response:
        return Response(400, b"{}", complete=True)

    def stop(self) -> None:
        pass


def _failed(error: Exception) -> Response:
    raise error


def looked_up(scheme: str, *lines: tuple[bytes, bytes]) -> bool:
    """Whether such a request's credentials were looked up, not left to the view to refuse."""
    verifier = _Verifier()
    edge = Edge(
        delegate=_View(),
        failed=_failed,
        begin=lambda: "id",
        observe=lambda *_: None,
        headers=(),
    )

    async def start() -> tuple[VerifierProcess, Edge]:
        return cast("VerifierProcess", verifier), edge

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(_: object) -> None:
        return

    async def work() -> None:
        endpoint = Endpoint(start)
        endpoint._verifier, endpoint._edge = await start()
        asked = scope("/v1/verify", "", [*GIVEN, *lines]) | {"scheme": scheme}
        await endpoint(asked, receive, send)

    asyncio.run(work())
    return verifier.cached_state.asked == ["Basic x"]


@pytest.mark.parametrize("accept", [AXIOS, CHROME, FIREFOX], ids=["axios", "chrome", "firefox"])
def test_SA_12_what_clients_accept_by_default_is_answered_here(accept: bytes) -> None:
    assert looked_up("http", (b"accept", accept))
    assert not looked_up("http", (b"accept", b"text/html"))


SAID = (b"x-forwarded-proto", b"https")


@pytest.mark.parametrize("trusted", [0, 1])
def test_credentials_sent_without_required_tls_are_not_looked_up(
    settings: Settings, trusted: int
) -> None:
    settings.SECURE_SSL_REDIRECT, settings.TRUSTED_PROXIES = True, trusted
    assert looked_up("https")
    assert not looked_up("http")
    # The header counts only if a trusted proxy sets it.
    assert looked_up("http", SAID) is bool(trusted)
    assert not looked_up("http", (b"x-forwarded-proto", b"http"))
    assert not looked_up("http", SAID, SAID)


def test_where_it_is_not_they_are(settings: Settings) -> None:
    settings.SECURE_SSL_REDIRECT = False
    assert looked_up("http")


def test_failed_start_is_reported_to_the_server_without_its_message(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def start() -> tuple[VerifierProcess, Edge]:
        raise ConnectionError("redis://:s3cret@host")

    async def receive() -> dict[str, str]:
        return {"type": "lifespan.startup"}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Endpoint(start)({"type": "lifespan"}, receive, send))
    assert sent == [{"type": "lifespan.startup.failed", "message": "ConnectionError"}]
    assert "the verifier could not start" in caplog.text
