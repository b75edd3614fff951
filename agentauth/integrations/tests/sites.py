"""What the conformance suite needs from an integration: a site with certain resources, and a
registry that allows or refuses.

To add a framework, add an `Integration` to test_conformance.py: it serves RESOURCES, each behind
the check as its name says, and lists the ways to put a cache in front that must prevent its start.
"""

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

import httpx

AUDIENCE: Final = "https://api.sp.example"
# In the body of every protected answer, with the name of the agent it is for.
SECRET: Final = "what only an agent with a grant may read"

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
# Public, and kept by the framework's cache.
OPEN: Final = "/open"


@dataclass
class Verify:
    """A registry's /v1/verify on a port: allows tokens that begin with `good`, each proof once,
    until `revoked`.
    """

    url: str = ""
    revoked: bool = False
    nonce: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        spent = question["proof"] in {each["proof"] for each in self.asked}
        self.asked.append(question)
        if self.revoked or not question["token"].startswith("good"):
            return {"valid": False, "error": "invalid_token", "reason": "revoked"}
        if spent:
            return {"valid": False, "error": "invalid_dpop_proof", "reason": "replayed"}
        agent = {"id": question["token"], "name": "A"}
        allowed = {
            "valid": True,
            "decision_id": "d",
            "agent": agent,
            "subject": "s",
            "grant_id": "g",
        }
        return allowed | ({"nonce": self.nonce} if self.nonce else {})


@contextmanager
def verifying() -> Iterator[Verify]:
    registry = Verify()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        # Head and body in one packet, else each answer waits for an acknowledgement.
        wbufsize = 65_536

        def do_POST(self) -> None:
            question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            body = json.dumps(registry.answer(question)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        registry.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield registry
        finally:
            server.shutdown()
            thread.join()


@dataclass(frozen=True)
class Integration:
    """`start` serves the site, asking the registry at the URL it is given; `in_front` starts it
    behind a cache.
    """

    name: str
    start: Callable[[str], AbstractContextManager[httpx.Client]]
    resources: frozenset[str]
    in_front: Mapping[str, Callable[[str], AbstractContextManager[httpx.Client]]]


@dataclass
class Site:
    """A running site and its registry, called by agents whose proofs are all new."""

    client: httpx.Client
    registry: Verify
    resources: frozenset[str]
    _proofs: int = 0

    def ask(self, method: str, path: str, **headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(method, path, headers=named)

    def ask_as(self, token: str, method: str, path: str, **headers: str) -> httpx.Response:
        self._proofs += 1
        proof = f"proof.{self._proofs}.x"
        return self.ask(method, path, Authorization=f"DPoP {token}", DPoP=proof, **headers)
