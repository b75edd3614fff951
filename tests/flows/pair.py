"""The web server and the verifier's own process over one database, sent the same bytes over sockets: what each answers."""

import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.actors import Scene, scene
from tests.flows.test_web_server import exchange
from tests.live import LiveRegistry, LiveServer
from tests.production.registry import ProductionRegistry

VERIFY, BATCH, INTROSPECT = "/v1/verify", "/v1/verify/batch", "/v1/introspect"
FORM = "application/x-www-form-urlencoded"
READ = {"type": "read", "resource": "calendar"}
PAY = {"type": "transact", "resource": "payments", "max_amount": {"value": "50.00", "currency": "EUR"}}
# Of each answer alone, or the server's own (RFC 9110): when, which, by whom, and whether more is heard on this connection.
OWN_LINES = {b"date", b"x-request-id", b"server", b"connection"}
OWN = re.compile(rb'(?<="decision_id":")[^"]+|(?<="expires_in":)\d+')
POST = "POST {path} HTTP/1.1"


class Pair:
    """Both servers over one database, and a grant."""

    def __init__(self, web: LiveRegistry, lean: LiveServer) -> None:
        self.web, self.lean = web, lean
        self.place: Scene = scene(web, capabilities=[READ, PAY], envelope={})
        self.token = self.place.token()

    def question(self, **more: Any) -> bytes:
        """One that may be asked twice, with a fresh proof."""
        return json.dumps(
            self.place.question(self.token, more.pop("action", READ), dry_run=True, **more)
        ).encode()

    def both(self, sent: bytes) -> tuple[Any, Any]:
        """Send both the same; what each says. At once, since some wait for the same thing."""
        with ThreadPoolExecutor(2) as pool:
            web, lean = pool.map(lambda server: parts(exchange(server, sent)), (self.web, self.lean))
        return web, lean

    def same(self, sent: bytes) -> tuple[int, bytes]:
        """Status and body of what both answered."""
        web, lean = self.both(sent)
        assert lean == web
        first, _, body = web[-1]
        return int(first.split(b" ")[1]), body

    def send(
        self,
        body: bytes,
        path: str = VERIFY,
        *more: str,
        first: str = "POST {path} HTTP/1.1",
        **changes: str | None,
    ) -> bytes:
        """A request in order. `changes` puts lines in the place of others; `more` are lines beside."""
        whose = f"{self.place.client_id}:{self.place.client_secret}".encode()
        lines: dict[str, str | None] = {
            "Host": "localhost",
            "Authorization": "Basic " + base64.b64encode(whose).decode(),
            "Content-Type": FORM if path == INTROSPECT else "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        lines |= {name.replace("_", "-").title(): value for name, value in changes.items()}
        named = [f"{name}: {value}" for name, value in lines.items() if value is not None]
        head = [first.format(path=path), *named, *more, "", ""]
        return "\r\n".join(head).encode("latin-1") + body


class InstalledVerifier(LiveServer):
    """The verifier of the installed system, as the proxy asks it."""

    def __init__(self, registry: ProductionRegistry) -> None:
        self.url, self.port = registry.verifier_url, urlsplit(registry.verifier_url).port or 0


class InstalledPair(Pair):
    """Both of the installed system, as the proxy asks them: by http, with what it says of the client's https."""

    web: ProductionRegistry

    def __init__(self, registry: ProductionRegistry) -> None:
        super().__init__(registry, InstalledVerifier(registry))

    def send(self, body: bytes, path: str = VERIFY, *more: str, **changes: Any) -> bytes:
        return super().send(body, path, "X-Forwarded-Proto: https", *more, **changes)


def parts(answer: bytes) -> list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]:
    """Each answer on the connection, `100 Continue` too: version and status, its header lines, its body."""
    found = []
    while answer:
        head, _, answer = answer.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        named = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
        assert len(named) == len(lines)
        body = b""
        if not first.startswith(b"HTTP/1.1 100"):
            body, answer = answer, b""
        # How a body is framed is between server and proxy.
        if named.pop(b"transfer-encoding", b"") == b"chunked":
            body = unchunked(body)
        elif body:
            assert int(named.pop(b"content-length")) == len(body)
        kept = sorted(each for each in named.items() if each[0] not in OWN_LINES)
        # Without its phrase, which no client reads.
        found.append((first[:12], kept, OWN.sub(b"0", body)))
    return found


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body != b"0\r\n\r\n":
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


def be_at_home(registry: LiveRegistry, kind: str) -> None:
    """Where there is a Redis, whoever is up moves there by itself."""
    end = time.monotonic() + 60
    with psycopg.connect(registry.env["DATABASE_URL"], autocommit=True) as connection:
        while connection.execute("SELECT kind FROM verifier_home").fetchone() != (kind,):
            assert time.monotonic() < end, f"the home is not in {kind}"
            time.sleep(0.2)
