"""The conformance suite of the integrations: the site that each one serves, over real HTTP, and the
cases that each one passes.

To add a framework, write a site that serves ROUTES and RESOURCES, and add its `Integration` to
integrations.py. test_conformance.py runs CASES, test_caches.py the cases about caches; the table in
docs/integrations.md is held to CASES.
"""

import http.client
import json
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from agentauth.integrations.incoming_request import Incoming
from agentauth.integrations.provider_settings import Provider
from agentauth.integrations.requirement import requires
from tests import http_server
from tests.http_server import Quiet

AUDIENCE: Final = "https://api.sp.example"
# In the body of every protected answer, with the name of the agent it is for.
SECRET: Final = "what only an agent with a grant may read"


def kind_of(request: Incoming) -> Mapping[str, object]:
    return {"kind": request.query_value("kind")}


# The routes of a site and what each requires; {name} is a path parameter.
CALENDAR: Final = requires("read", "calendar/{name}")
NUMBERS: Final = requires("read", "numbers/{number}")
FILES: Final = requires("read", "files/{name:path}")
PAYMENTS: Final = requires("transact", "payments", amount="amount", arguments=["payee"])
ERASE: Final = requires("delete", "calendar")
KEPT: Final = requires("delete", "calendar", handles_repeats=True)
UPLOAD: Final = requires("write", "files", arguments=kind_of, reads_body=False)
EVENTS: Final = requires("write", "calendar")
COROUTINE: Final = requires("read", "calendar")
ROUTES: Final = {
    ("GET", "/calendar/{name}"): "its secret and its name",
    ("GET", "/numbers/{number}"): "its secret and its number; converted where the framework does",
    ("GET", "/files/{name:path}"): "its secret; the name may have slashes",
    ("POST", "/payments"): "its secret and the payee of the body",
    ("POST", "/erase"): "its secret; says nothing of repeats",
    ("POST", "/kept"): "`stored` if the decision says repeated, else `new`",
    ("POST", "/upload"): "its secret and the length of the body",
    ("POST", "/v1/events"): "its secret",
    ("GET", "/coroutine"): "its secret, by a coroutine",
}
RESOURCES: Final = {
    "/plain": "nothing around it",
    "/undecorated": "nothing said of it at all",
    "/class": "a view that is a class",
    "/cache-outside": "the framework's own cache of single views, around the check",
    "/cache-inside": "the same within the check",
    "/cache-around-undecorated": "the same around a view of which nothing is said",
    "/within-open": "a check within a view that is declared open and cached",
    "/etag": "the view gives ETag and Last-Modified",
    "/condition-outside": "the framework's own conditional requests (304), around the check",
    "/template": "an answer that is rendered after the view returned",
    "/stream": "an answer that comes piece by piece",
    "/missing": "the view raises the framework's 404",
    "/broken": "the view fails",
}
# The view's own Cache-Control, and the header that is sent.
SAYS: Final = {
    "/says-private": ("private, max-age=60", {"private", "max-age=60"}),
    "/says-max-age": ("max-age=60", {"private", "max-age=60"}),
    "/says-no-cache": ("no-cache", {"private", "no-cache"}),
    "/says-public": ("public, max-age=60", {"public", "max-age=60"}),
}
# Public, and kept by the framework's cache if it has one.
OPEN: Final = "/open"


@dataclass
class Verify:
    """A registry's /v1/verify on a port: allows tokens that begin with `good`, each proof once,
    until `revoked`.

    `says` answers instead, if it is set. If `down`, every answer is 503.
    """

    url: str = ""
    revoked: bool = False
    nonce: str | None = None
    says: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    down: bool = False
    asked: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        spent = question["proof"] in {each["proof"] for each in self.asked}
        self.asked.append(question)
        if self.says is not None:
            return self.says(question)
        if self.revoked or not question["token"].startswith("good"):
            return {"valid": False, "error": "invalid_token", "reason": "revoked"}
        if spent:
            return {"valid": False, "error": "invalid_dpop_proof", "reason": "replayed"}
        return yes(question["token"]) | ({"nonce": self.nonce} if self.nonce else {})


def yes(agent: str, **members: object) -> dict[str, Any]:
    known = {"id": agent, "name": "A"}
    return {
        "valid": True,
        "decision_id": "d",
        "agent": known,
        "subject": "s",
        "grant_id": "g",
        **members,
    }


@contextmanager
def verifying() -> Iterator[Verify]:
    registry = Verify()

    class Handler(Quiet):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet, else each answer waits for an acknowledgement.
        wbufsize = 65_536

        def do_POST(self) -> None:
            question = json.loads(self.body())
            if registry.down:
                self.say(503, {"error": "temporarily_unavailable"}, {"Retry-After": "0"})
            else:
                self.say(200, registry.answer(question))

    with http_server.serving(Handler) as registry.url:
        yield registry


@dataclass(frozen=True)
class Integration:
    """`start` serves the site, asking the registry at the URL it is given, and yields its address;
    `in_front` starts it behind a cache. `leaves_out`: case → the reason why it does not apply.
    """

    name: str
    start: Callable[[str], AbstractContextManager[str]]
    resources: frozenset[str]
    in_front: Mapping[str, Callable[[str], AbstractContextManager[str]]] = field(
        default_factory=dict
    )
    leaves_out: Mapping[str, str] = field(default_factory=dict)


Lines = list[tuple[str, str]]
# Made once: it reads all certificates, which takes 10 ms, and no site has any.
_TLS = httpx.create_ssl_context()


@dataclass
class Site:
    """A running site and its registry, called by agents whose proofs are all new."""

    url: str
    client: httpx.Client
    registry: Verify
    resources: frozenset[str]
    _proofs: int = 0

    def ask(self, method: str, path: str, content: Any = None, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, path, headers=named, content=content)

    def ask_as(
        self, token: str, method: str, path: str, content: Any = None, **headers: str
    ) -> httpx.Response:
        proof = self.proof()
        sent = {"Authorization": f"DPoP {token}", "DPoP": proof, **headers}
        return self.ask(method, path, content, **sent)

    def proof(self) -> str:
        self._proofs += 1
        return f"proof.{self._proofs}.x"

    def signed(self) -> Lines:
        return [("Authorization", "DPoP good"), ("DPoP", self.proof())]

    def raw(self, method: str, target: str, lines: Lines) -> httpx.Response:
        """A request with exactly this target and these header lines."""
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
        if not [name for name, _ in lines if name.lower() == "host"]:
            connection.putheader("Host", "api.sp.example")
        for name, value in lines:
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        body = answer.read()
        connection.close()
        return httpx.Response(answer.status, headers=answer.getheaders(), content=body)


def provider_at(registry_url: str) -> Provider:
    return Provider(registry_url, "id", "secret", AUDIENCE)


@contextmanager
def running(integration: Integration) -> Iterator[Site]:
    """The site of an integration, with a registry of its own."""
    with verifying() as registry, integration.start(registry.url) as url:
        # The name that the site is known by, at the address where it listens.
        headers = {"Host": "api.sp.example", "Accept-Encoding": "gzip"}
        # uvicorn closes a connection after a failure of the application.
        once = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(
            base_url=url, headers=headers, trust_env=False, timeout=60, limits=once, verify=_TLS
        ) as client:
            yield Site(url, client, registry, integration.resources)


Act = Callable[[], None]


@contextmanager
def serving(run: Callable[[socket.socket], tuple[Act, Act]]) -> Iterator[str]:
    """A server on a free port: `run` gives the functions that serve and that stop it."""
    # It listens before it is served, so a client that connects early waits.
    listener = socket.create_server(("127.0.0.1", 0))
    serve, stop = run(listener)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stop()
        thread.join()
        listener.close()


def served_by_wsgi(application: Any) -> AbstractContextManager[str]:
    """Over Werkzeug's server, which gives the raw target and joins header lines with a comma."""
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, *_args: Any) -> None:
            pass

    def run(listener: socket.socket) -> tuple[Act, Act]:
        host, port = listener.getsockname()
        server = make_server(
            host, port, application, threaded=True, request_handler=Quiet, fd=listener.fileno()
        )

        def stop() -> None:
            server.shutdown()

        def serve() -> None:
            server.serve_forever(0.01)
            server.server_close()

        return serve, stop

    return serving(run)


def served_by_asgi(application: Any) -> AbstractContextManager[str]:
    """Over uvicorn, which passes on every header line."""
    import uvicorn

    def run(listener: socket.socket) -> tuple[Act, Act]:
        config = uvicorn.Config(
            application, log_config=None, ws="none", loop="asyncio", timeout_graceful_shutdown=5
        )
        server = uvicorn.Server(config)

        def stop() -> None:
            server.should_exit = True

        return lambda: server.run(sockets=[listener]), stop

    return serving(run)
