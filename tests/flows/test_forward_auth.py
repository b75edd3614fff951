"""Forward auth behind a real nginx and a real Traefik, with the configurations that we publish.

No Envoy can be installed here: what it sends is tested by hand-made requests alone
(agentauth/integrations/tests/test_forward_auth.py).
"""

import asyncio
import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth import AgentAuthClient, Capability
from agentauth.integrations.forward_auth import TOLD
from tests.flows.test_sdk_client import decide
from tests.http_server import Quiet, serving
from tests.live import ROOT, LiveRegistry
from tests.nginx import nginx
from tests.postgres import free_port
from tests.waiting import until_listening

pytestmark = [pytest.mark.flow, pytest.mark.nginx]

EXAMPLES = ROOT / "examples/forward-auth"
# What a caller may try to make the API believe.
FORGED = dict.fromkeys(TOLD, "forged")
# Spellings that CGI-like servers take for the same names.
UNDERSCORES = {
    spelling: "forged"
    for name in TOLD
    for spelling in (
        name.replace("-", "_"),
        name.replace("-", "_", 1),
        "_".join(name.rsplit("-", 1)),
    )
}


class Api(Quiet):
    """The API behind the proxy: answers what it was asked, path and headers."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        told = {name: self.headers.get(name, "") for name in TOLD}
        seen = sorted(name.lower() for name in self.headers.keys() if "_" in name)
        seen += [name.lower() for name in self.headers.keys() if name.lower() == "upgrade"]
        status = 403 if self.path == "/calendar/forbidden" else 200
        self.say(status, {"path": self.path, "seen": seen, **told})


@dataclass
class Place:
    """A protected API: its address, an agent with a grant there, and the check beside it."""

    url: str
    slug: str
    client: AgentAuthClient
    check: subprocess.Popen[bytes]
    registry: LiveRegistry
    grant_id: str

    def headers(self, method: str, path: str) -> dict[str, str]:
        return asyncio.run(self.client.authenticate_headers(self.slug, method, path))

    def ask(self, path: str, headers: dict[str, str] | None = None) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, trust_env=False, timeout=30)


def started_as_printed(port: int, secret: str) -> list[str]:
    """The command of docs/forward-auth.md; its shell becomes gunicorn."""
    page = (ROOT / "docs/forward-auth.md").read_text()
    [block] = re.findall(r"^ *```sh\n(.+?)^ *```$", page, re.MULTILINE | re.DOTALL)
    for printed, real in (("…", f"{secret} exec"), ("127.0.0.1:9000", f"127.0.0.1:{port}")):
        assert printed in block
        block = block.replace(printed, real)
    return ["bash", "-c", block]


@contextlib.contextmanager
def running(command: list[str], log: Path, port: int, cwd: Path = ROOT) -> Iterator[Any]:
    """A process in `cwd` that listens on `port`, until the end of the block."""
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = os.environ | {"PATH": programs, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as output:
        process = subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=output)
    try:
        until_listening(port, process, log)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def with_ports(text: str, check: int, behind: int) -> str:
    """The published configuration, at the ports of this test instead of 9000 and 8080."""
    made, count = re.subn(
        r"127\.0\.0\.1:(9000|8080)\b",
        lambda found: f"127.0.0.1:{check if found[1] == '9000' else behind}",
        re.sub(r"(?m)^ *#.*$", "", text),
    )
    assert count == 2
    return made


@contextlib.contextmanager
def proxied(kind: str, directory: Path, port: int, check: int, behind: int) -> Iterator[str]:
    if kind == "nginx":
        site = with_ports((EXAMPLES / "nginx.conf").read_text(), check, behind)
        with nginx(site, directory / "nginx", port=port) as server:
            yield f"http://127.0.0.1:{server.port}"
        return
    routes = directory / "traefik.yaml"
    routes.write_text(with_ports((EXAMPLES / "traefik.yaml").read_text(), check, behind))
    command = [
        shutil.which("traefik", path=Path(sys.executable).parent) or "traefik",
        f"--entryPoints.web.address=127.0.0.1:{port}",
        f"--providers.file.filename={routes}",
        "--global.checkNewVersion=false",
        "--global.sendAnonymousUsage=false",
    ]
    with running(command, directory / "traefik.log", port):
        url, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
        # It listens before it has read its routes.
        while httpx.get(f"{url}/health", trust_env=False, timeout=30).status_code == 404:
            assert time.monotonic() < until
            time.sleep(0.05)
        yield url


@pytest.fixture(scope="module", params=["nginx", "traefik"])
def place(
    request: pytest.FixtureRequest,
    sqlite_registry: LiveRegistry,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Place]:
    directory = tmp_path_factory.mktemp(request.param)
    port, check = free_port(), free_port()
    audience = f"http://127.0.0.1:{port}"
    made = sqlite_registry.manage(
        "create_service_provider", f"Behind {request.param}", "--audience", audience,
        "--allow", "read:calendar",
    )  # fmt: skip
    client = AgentAuthClient(sqlite_registry.url, key_file=directory / "agent.json")
    read = [Capability.read("calendar/work"), Capability.read("calendar/forbidden")]
    grant = asyncio.run(client.request_grant(made["slug"], read))
    decide(sqlite_registry, "approve", grant.grant_id)
    settings = {
        "https://registry.example.com": sqlite_registry.url,
        "the service provider's id": made["client_id"],
        "https://api.example.com": audience,
        'proxy = "nginx"': f'proxy = "{request.param}"',
    }
    text = (EXAMPLES / "agentauth.toml").read_text()
    for old, new in settings.items():
        assert old in text
        text = text.replace(old, new)
    (directory / "agentauth.toml").write_text(text)
    command = started_as_printed(check, made["client_secret"])
    with (
        serving(Api) as behind,
        running(command, directory / "check.log", check, directory) as process,
        proxied(request.param, directory, port, check, int(behind.rpartition(":")[2])) as url,
    ):
        yield Place(url, made["slug"], client, process, sqlite_registry, grant.grant_id)


def test_allowed_request_reaches_the_api_with_the_agent_s_name(place: Place) -> None:
    path = "/calendar/work?day=1"
    answer = place.ask(path, place.headers("GET", path) | FORGED)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    identity = place.client.identity()
    assert (told["path"], told["X-AgentAuth-Agent"]) == (path, identity.agent_id)
    assert told["X-AgentAuth-Grant"] == place.grant_id
    assert "forged" not in told.values()


def test_open_route_passes_on_no_forged_name(place: Place) -> None:
    answer = place.ask("/health", FORGED | UNDERSCORES)
    assert answer.status_code == 200
    told = answer.json()
    assert told.pop("seen") == []
    assert "forged" not in told.values()


@pytest.mark.parametrize("protocol", ["websocket", "h2c"])
def test_no_tunnel_opens_through_the_proxy(place: Place, protocol: str) -> None:
    for path in ("/health", "/calendar/work"):
        asks = {"Connection": "Upgrade", "Upgrade": protocol}
        answer = place.ask(path, place.headers("GET", path) | asks if path != "/health" else asks)
        assert answer.status_code in {200, 400}
        # The API never sees the header, so it cannot answer 101.
        assert answer.status_code == 400 or answer.json()["seen"] == []


def test_api_s_own_refusal_reaches_the_agent(place: Place) -> None:
    path = "/calendar/forbidden"
    answer = place.ask(path, place.headers("GET", path))
    assert (answer.status_code, answer.json()["path"]) == (403, path)


def test_refusals_reach_the_agent_with_status_headers_and_body(place: Place) -> None:
    stranger = place.ask("/calendar/work")
    assert stranger.status_code == 401
    assert stranger.headers["WWW-Authenticate"].startswith('DPoP error="invalid_token"')
    assert stranger.headers["Cache-Control"] == "no-store"
    assert stranger.json()["error"] == "invalid_token"
    headers = place.headers("GET", "/calendar/work")
    assert place.ask("/calendar/work", headers).status_code == 200
    again = place.ask("/calendar/work", headers)
    assert (again.status_code, again.json()["reason"]) == (401, "replayed")
    elsewhere = place.ask("/calendar/home", place.headers("GET", "/calendar/home"))
    assert (elsewhere.status_code, elsewhere.json()["reason"]) == (403, "no_capability")
    double = place.ask(
        "/calendar/work",
        place.headers("GET", "/calendar/work") | {"Idempotency-Key": "two words, and a comma"},
    )
    assert (double.status_code, double.json()["error"]) == (400, "invalid_request")


@pytest.mark.parametrize("path", ["/other", "/calendar/work/more", "/calendar/a%2Fb", "/calendar"])
def test_SA_5_no_other_path_passes(place: Place, path: str) -> None:
    answer = place.ask(path, place.headers("GET", path))
    assert answer.status_code in {400, 403}
    assert "path" not in answer.json()


def test_fragment_leads_to_no_other_path(place: Place) -> None:
    """As sent on the wire: HTTP clients cut a fragment off."""
    for target in ("/health#/../calendar/work", "/calendar/work#/../home"):
        with socket.create_connection(("127.0.0.1", int(place.url.rsplit(":", 1)[1]))) as line:
            line.settimeout(60)
            line.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            told = b"".join(iter(lambda: line.recv(65_536), b""))
        assert told.split(b" ", 2)[1] in {b"400", b"403"}, told
        assert b'"path"' not in told


def test_revoked_grant_is_refused_at_once(place: Place) -> None:
    path = "/calendar/work"
    headers = place.headers("GET", path)
    decide(place.registry, "revoke", place.grant_id)
    assert place.ask(path, headers).status_code == 401


def test_nothing_passes_without_the_check(place: Place) -> None:
    """Runs last: it stops the check."""
    place.check.terminate()
    place.check.wait(60)
    answer = place.ask("/health")
    assert answer.status_code >= 500
    assert "path" not in answer.text
