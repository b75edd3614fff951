"""In production mode the verifier's own process answers as the web server does, header by header, and both as a browser needs it."""

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import pytest

from tests import openbao, redis_servers
from tests.conftest import fresh_database
from tests.equal import BATCH, INTROSPECT, VERIFY
from tests.flows.test_same_answers import OWN_LINES, READ, SENT, Pair, be_at_home, parts
from tests.flows.test_serving_role import psql
from tests.flows.test_web_server import exchange
from tests.live import START_SECONDS, LiveRegistry, LiveServer, LiveVerifier
from tests.nginx import Nginx, documented, nginx
from tests.postgres import free_port
from verifier.tests.test_accept import AXIOS, CHROME, FIREFOX

pytestmark = [pytest.mark.flow, pytest.mark.postgres, pytest.mark.redis, pytest.mark.nginx]

PATHS = (VERIFY, BATCH, INTROSPECT)
HTTPS = "X-Forwarded-Proto: https"
HSTS = b"max-age=31536000; includeSubDomains; preload"


class InProduction(LiveServer):
    """A server that answers to one host name alone."""

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        address, host = f"http://127.0.0.1:{self.port}/health/ready", {"Host": "localhost"}
        while time.monotonic() < deadline:
            try:
                if httpx.get(address, headers=host, timeout=5, trust_env=False).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("the server did not start:\n" + self.log.read_text()[-4000:])


class Registry(InProduction, LiveRegistry):
    """The web server on the serving role, its keys in OpenBao, behind a proxy with TLS."""


class Verifier(InProduction, LiveVerifier):
    """The verifier's own process on its own role."""


class ProductionPair(Pair):
    """Both as the proxy asks them: by http, with what it says of the client's https."""

    proxy: Nginx

    def send(self, body: bytes, path: str = VERIFY, *more: str, **changes: Any) -> bytes:
        return super().send(body, path, HTTPS, *more, **changes)


def role_of(owner: str, name: str) -> str:
    """A new role of the owner's database: the URL to be it."""
    name = f"{name}_{os.urandom(3).hex()}"
    assert psql(owner, f"CREATE ROLE {name} LOGIN PASSWORD 'p'").returncode == 0
    parts = urlsplit(owner)
    return urlunsplit(parts._replace(netloc=f"{name}:p@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture(scope="module")
def pair(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProductionPair]:
    home, port = tmp_path_factory.mktemp("production"), free_port()
    with ExitStack() as stack:
        owner = fresh_database(postgres_url, "flow_production_answers")
        redis = stack.enter_context(redis_servers.server())
        env = {
            "AGENTAUTH_TESTING": "",
            "PUBLIC_URL": f"https://localhost:{port}",
            "TRUSTED_PROXIES": "1",
            "DATABASE_OWNER_URL": owner,
            "REDIS_URL": redis.url,
            "KEY_BACKEND": "vault",
            "VAULT_ADDR": stack.enter_context(openbao.server(home)),
            "VAULT_TOKEN": openbao.ROOT_TOKEN,
            "AUDIT_STORE": f"file:{home / 'store'}",
        }
        web = Registry(home, database_url=role_of(owner, "serving"), workers=1, env=env)
        web.url = env["PUBLIC_URL"]
        web.run("migrate", "-v", "0")
        web.manage("grant_serving_role")
        web.manage("make_subject_key", str(home / "subject.key"))
        web.env["SUBJECT_KEY_FILE"] = str(home / "subject.key")
        web.manage("record_settings")
        web.run("ensure_keys", "-v", "0")
        lean = Verifier(web, redis_url=redis.url, workers=1)
        lean.env["DATABASE_URL"] = role_of(owner, "verifier")
        web.manage("grant_verifier_role", urlsplit(lean.env["DATABASE_URL"]).username or "")
        for server in (web, lean):
            stack.callback(server.stop)
            server.start()
        site = documented(web=web.port, verifier=lean.port)
        proxy = stack.enter_context(nginx(site, home / "nginx", port=port, tls=True))
        # The clients of the cast trust what it names.
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        patch.setenv("SSL_CERT_FILE", str(proxy.certificate))
        be_at_home(web, "redis")
        made = ProductionPair(web, lean)
        made.proxy = proxy
        yield made
    for server in (lean, web):
        assert "Traceback" not in server.log.read_text()


def body(pair: Pair, path: str) -> bytes:
    if path == INTROSPECT:
        return f"token={pair.token}".encode()
    return pair.question() if path == VERIFY else b'{"requests":[' + pair.question() + b",{},7]}"


def test_SA_12_this_is_production(pair: ProductionPair) -> None:
    """A call that no proxy of ours vouches for is sent to https, by both."""
    for server in (pair.web, pair.lean):
        [(first, lines, _)] = parts(exchange(server, Pair.send(pair, b"{}")))
        assert (first, dict(lines)[b"location"]) == (b"HTTP/1.1 301", b"https://localhost/v1/verify")


@pytest.mark.parametrize("name", SENT)
def test_SA_12_each_request_has_the_same_answer_header_by_header(pair: ProductionPair, name: str) -> None:
    make, _ = SENT[name]
    for path in PATHS:
        sent = make(pair, path)
        web, lean = pair.both(sent)
        assert lean == web, path
        for first, lines, _ in lean:
            if not first.startswith(b"HTTP/1.1 100"):
                assert_as_production_answers(first, dict(lines))


def assert_as_production_answers(first: bytes, headers: dict[bytes, bytes]) -> None:
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"strict-transport-security"] == HSTS
    assert headers[b"x-content-type-options"] == b"nosniff"
    assert headers[b"cache-control"] == b"no-store"
    assert b"location" not in headers, first


@pytest.mark.parametrize("accept", [AXIOS, FIREFOX, CHROME], ids=["axios", "firefox", "chrome"])
def test_SA_12_what_clients_accept_by_default_is_answered_alike(pair: ProductionPair, accept: bytes) -> None:
    for path in PATHS:
        status, _ = pair.same(pair.send(body(pair, path), path, f"Accept: {accept.decode()}"))
        assert status == 200


def test_SA_12_allowed_denied_and_limited_calls_are_answered_alike(pair: ProductionPair) -> None:
    write = {"type": "write", "resource": "files"}
    for more, valid in (({}, True), ({"action": write}, False), ({"url": "x"}, False)):
        status, answer = pair.same(pair.send(pair.question(**more)))
        assert (status, json.loads(answer)["valid"]) == (200, valid)
    web, lean = map(limited, (pair.web, pair.lean))
    assert lean == web


def limited(server: LiveServer) -> tuple[dict[bytes, bytes], Any]:
    """Headers and body of its answer to a stranger who asked too often. Each process counts for itself."""
    headers = {"Host": "localhost", "X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.7"}
    with httpx.Client(headers=headers, trust_env=False, timeout=30) as client:
        for _ in range(3_000):
            answer = client.post(f"http://127.0.0.1:{server.port}{VERIFY}", json={})
            if answer.status_code == 429:
                break
    assert answer.status_code == 429
    found = {name.lower(): value for name, value in answer.headers.raw}
    assert_as_production_answers(b"429", found)
    assert found.pop(b"retry-after")
    own = OWN_LINES | {b"content-length", b"transfer-encoding"}
    told = answer.json()
    assert told.pop("retry_after")
    return {name: value for name, value in found.items() if name not in own}, told


def test_SA_12_through_the_proxy_both_answer_with_https_headers(pair: ProductionPair) -> None:
    with httpx.Client(base_url=pair.proxy.url, verify=pair.proxy.trust) as client:
        whose = (pair.place.client_id, pair.place.client_secret)
        asked = pair.place.question(pair.token, READ, dry_run=True)
        answers = [
            client.post(VERIFY, json=asked, auth=whose),
            client.post(VERIFY, json={}),
            client.get("/.well-known/agentauth"),
            client.post("/v1/tokens", json={}),
        ]
    assert [each.status_code for each in answers] == [200, 401, 200, 400]
    for each in answers:
        assert each.headers["Strict-Transport-Security"].encode() == HSTS
        assert re.match("application/json", each.headers["Content-Type"])
        assert "Location" not in each.headers
