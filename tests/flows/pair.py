"""Sends the same bytes to the web server and to the verifier's process, on one database."""

import base64
import json
import re
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import psycopg

from tests.actors import Scene, may_pay, scene
from tests.flows.test_web_server import exchange
from tests.live import LiveRegistry, LiveServer
from tests.production.registry import ProductionRegistry
from verifier.endpoint_paths import INTROSPECT, VERIFY

FORM = "application/x-www-form-urlencoded"
READ = {"type": "read", "resource": "calendar"}
PAY = may_pay("50.00")
# Headers of one answer, or of the server itself (RFC 9110): date, id, server, and whether the
# connection closes.
OWN_LINES = {b"date", b"x-request-id", b"server", b"connection"}
OWN = re.compile(rb'(?<="decision_id":")[^"]+|(?<="expires_in":)\d+')
POST = "POST {path} HTTP/1.1"


class Pair:
    """Both servers on one database, and a grant."""

    def __init__(self, web: LiveRegistry, lean: LiveServer) -> None:
        self.web, self.lean = web, lean
        self.place: Scene = scene(web, capabilities=[READ, PAY], envelope={})
        self.token = self.place.token()

    def question(self, **more: Any) -> bytes:
        """A question that may be asked twice, a dry run unless `more` says else; a fresh proof."""
        told = {"dry_run": True, **more}
        return json.dumps(
            self.place.question(self.token, told.pop("action", READ), **told)
        ).encode()

    def both(self, sent: bytes) -> tuple[Any, Any]:
        """Send both the same bytes at once, since some wait for one row; returns both answers."""
        with ThreadPoolExecutor(2) as pool:
            web, lean = pool.map(
                lambda server: parts(exchange(server, sent)), (self.web, self.lean)
            )
        return web, lean

    def same(self, sent: bytes) -> tuple[int, bytes]:
        """The status and body that both answered. Sent again while a busy machine answers 503."""
        for _ in range(60):
            web, lean = self.both(sent)
            if not any(first.endswith(b"503") for first, *_ in web + lean):
                break
            time.sleep(0.5)
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
        """A valid request. `changes` replaces header lines; `more` adds lines."""
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
    """The installed system's verifier, addressed as the proxy does."""

    def __init__(self, registry: ProductionRegistry) -> None:
        self.url, self.port = registry.verifier_url, urlsplit(registry.verifier_url).port or 0


class InstalledPair(Pair):
    """Both installed servers, addressed as the proxy does: by http, stating the client's https."""

    web: ProductionRegistry

    def __init__(self, registry: ProductionRegistry) -> None:
        super().__init__(registry, InstalledVerifier(registry))

    def send(self, body: bytes, path: str = VERIFY, *more: str, **changes: Any) -> bytes:
        return super().send(body, path, "X-Forwarded-Proto: https", *more, **changes)


def parts(answer: bytes) -> list[tuple[bytes, list[tuple[bytes, bytes]], bytes]]:
    """Each answer on the connection, `100 Continue` too: version and status, headers, body."""
    found = []
    while answer:
        head, _, answer = answer.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        named = {name.lower(): value for name, value in (line.split(b": ", 1) for line in lines)}
        assert len(named) == len(lines)
        body = b""
        if not first.startswith(b"HTTP/1.1 100"):
            body, answer = answer, b""
        # Body framing is between server and proxy.
        if named.pop(b"transfer-encoding", b"") == b"chunked":
            body = unchunked(body)
        elif body:
            assert int(named.pop(b"content-length")) == len(body)
        kept = sorted(each for each in named.items() if each[0] not in OWN_LINES)
        # Without the reason phrase, which clients do not read.
        found.append((first[:12], kept, OWN.sub(b"0", body)))
    return found


def unchunked(body: bytes) -> bytes:
    whole = b""
    while body != b"0\r\n\r\n":
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        whole, body = whole + body[:length], body[length + 2 :]
    return whole


def wait_for_replay_cache(registry: LiveRegistry, kind: str) -> None:
    """Wait until the replay cache is `kind`; verifiers move to a configured Redis by themselves."""
    end = time.monotonic() + 60
    with psycopg.connect(registry.env["DATABASE_URL"], autocommit=True) as connection:
        while connection.execute("SELECT kind FROM verifier_home").fetchone() != (kind,):
            assert time.monotonic() < end, f"the home is not in {kind}"
            time.sleep(0.2)
