"""The same tests through the lean endpoint, and with the home in Redis: `pytest verifier/tests --through lean --home redis`."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from django.conf import settings
from django.http import HttpResponse
from django.test import Client
from django.utils import timezone

from tests import conformance
from verifier.models import Home
from verifier.services import home
from verifier.stores.sync_connection import SyncServers, sync_client

SERVED = {"/v1/verify", "/v1/verify/batch", "/v1/introspect"}


class LeanClient(Client):
    """Django's client, but the lean endpoint answers what it serves."""

    endpoint: "Running"

    def request(self, **request: Any) -> Any:
        path = request["PATH_INFO"]
        if path not in SERVED or request["REQUEST_METHOD"] != "POST":
            return super().request(**request)
        body = request["wsgi.input"].read()
        names = {"CONTENT_TYPE": b"content-type", "CONTENT_LENGTH": b"content-length"}
        headers = [(b"host", b"localhost")]
        for name, value in request.items():
            if name.startswith("HTTP_") or name in names:
                sent = names.get(name, name[5:].lower().replace("_", "-").encode())
                headers.append((sent, str(value).encode("latin-1")))
        answer = self.endpoint.ask(path, request.get("QUERY_STRING", ""), headers, body)
        conformance.check("POST", path, answer.status_code, answer.headers, answer.content)
        if settings.REDIS_URL:
            drained()
        return answer


def drained() -> None:
    """What Redis holds of decisions is in the log."""
    from verifier.services.draining import drain

    drain(sync_client(), now=timezone.now())


class Running:
    """The endpoint in a loop of its own, in a thread."""

    def __init__(self) -> None:
        # Not before the settings are those of the test.
        from agentauth.asgi import start
        from verifier.endpoint import Endpoint

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.app = Endpoint(start)
        self._from_server: asyncio.Queue[dict[str, Any]] = self._run(self._queue())
        self._to_server: asyncio.Queue[dict[str, Any]] = self._run(self._queue())
        self._living = asyncio.run_coroutine_threadsafe(self._live(), self._loop)
        self._turn("startup")

    @staticmethod
    async def _queue() -> asyncio.Queue[dict[str, Any]]:
        return asyncio.Queue()

    def _run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _live(self) -> None:
        await self.app({"type": "lifespan"}, self._from_server.get, cast("Any", self._to_server.put))

    def _turn(self, what: str) -> None:
        self._run(self._from_server.put({"type": f"lifespan.{what}"}))
        told = self._run(self._to_server.get())
        assert told["type"] == f"lifespan.{what}.complete", told

    def ask(self, path: str, query: str, headers: list[tuple[bytes, bytes]], body: bytes) -> HttpResponse:
        """One request, as the server would hand it on."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
        }
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self._run(self.app(scope, receive, send))
        start, content = sent
        lines = {name.decode(): value.decode("latin-1") for name, value in start["headers"]}
        lines.pop("content-length")
        return HttpResponse(content["body"], status=start["status"], headers=lines)

    def stop(self) -> None:
        self._turn("shutdown")
        self._living.result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


@contextmanager
def at_home_in_redis(url: str) -> Iterator[None]:
    """The first epoch, in Redis."""
    servers = SyncServers(url)
    try:
        row, _ = home.look()
        servers.mark(row.epoch)
        Home.objects.update(kind=Home.Kind.REDIS, servers=sorted(servers.run_ids().values()))
        yield
    finally:
        servers.close()
