"""The official TypeScript MCP client uses the demo service through our server, unmodified."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.live import ROOT, LiveRegistry
from tests.mcp_story import (
    CAPABILITIES,
    LIMITS,
    Person,
    arguments,
    demo_service,
    http_server,
    payment,
)

pytestmark = pytest.mark.node

HERE = Path(__file__).resolve().parent / "mcp"


@pytest.fixture(scope="module")
def service(sqlite_registry: LiveRegistry) -> Iterator[str]:
    with demo_service(sqlite_registry) as slug:
        yield slug


class TypeScriptClient:
    """One session; `person` decides on each link before it is answered."""

    def __init__(self, process: "subprocess.Popen[str]", person: Person) -> None:
        self.process, self.person = process, person

    def tell(self, line: dict[str, Any]) -> dict[str, Any]:
        """Send one line; the answer, after any links."""
        self._write(line)
        while "link" in (answer := self._read()):
            assert answer["mode"] == "url"
            self.person.decide(answer["link"])
            self._write({"action": "accept"})
        return answer

    def call(self, tool: str, **told: Any) -> dict[str, Any]:
        answer = self.tell({"tool": tool, "arguments": told})
        body: dict[str, Any] = answer["body"]
        return body

    def _write(self, line: dict[str, Any]) -> None:
        assert self.process.stdin
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the client ended"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextlib.contextmanager
def client(first: dict[str, Any], person: Person) -> Iterator[TypeScriptClient]:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        ["node", "client.mjs"], cwd=HERE, stdin=pipe, stdout=pipe, text=True
    ) as process:
        made = TypeScriptClient(process, person)
        assert "version" in made.tell(first)
        yield made
        assert process.stdin
        process.stdin.close()


def over_stdio(registry: LiveRegistry, key_file: Path) -> dict[str, Any]:
    return {
        "command": sys.executable,
        "args": arguments(registry, key_file),
        "cwd": str(ROOT),
    }


def test_the_lock_file_of_the_mcp_client_names_hashes_and_no_registry() -> None:
    lock = (HERE / "package-lock.json").read_text()
    packages = [entry for name, entry in json.loads(lock)["packages"].items() if name]
    assert not any("resolved" in entry for entry in packages)
    assert all(entry["integrity"].startswith("sha512-") for entry in packages)


@pytest.mark.long
@pytest.mark.usefixtures("npm_packages_of_mcp")
@pytest.mark.parametrize("era", ["legacy", "auto"])
def test_the_client_is_led_to_the_person_and_its_calls_go_on(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path, era: str
) -> None:
    person = Person(sqlite_registry, ["approve", "confirm"])
    first = {**over_stdio(sqlite_registry, tmp_path / "agent.json"), "era": era, "links": True}
    with client(first, person) as session:
        assert len(session.tell({"list": True})["tools"]) == 4
        asked = {"service": service, "capabilities": CAPABILITIES, "limits": LIMITS}
        assert session.call("request_access", **asked)["status"] == "approved"
        read = {"service": service, "method": "GET", "path": "/calendar/work"}
        assert session.call("call_service", **read)["http_status"] == 200
        assert session.call("call_service", **payment(service, "80.00"))["http_status"] == 201
        assert session.call("revoke_access", service=service)["status"] == "revoked"
        assert session.call("call_service", **read)["error"] == "no_grant"
    assert person.kinds == ["claim", "confirmations"]


@pytest.mark.long
@pytest.mark.usefixtures("npm_packages_of_mcp")
def test_over_http_a_client_without_links_gets_them_as_text(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path
) -> None:
    person = Person(sqlite_registry, ["approve", "confirm"])
    with http_server(sqlite_registry, tmp_path / "agent.json") as url:
        first = {"url": url, "era": "auto", "links": False}
        with client(first, person) as session:
            asked = {"service": service, "capabilities": CAPABILITIES, "limits": LIMITS}
            waiting = session.call("request_access", **asked)
            assert waiting["status"] == "waiting_for_person"
            person.decide(waiting["approval_url"])
            parked = session.call("call_service", **payment(service, "80.00"))
            assert parked["status"] == "waiting_for_person"
            person.decide(parked["approval_url"])
            again = payment(service, "80.00") | {"idempotency_key": parked["idempotency_key"]}
            assert session.call("call_service", **again)["http_status"] == 201
    log = (tmp_path / "agent.log").read_text()
    assert not [secret for secret in ("eyJ", "/claim/", "/payments") if secret in log], log


@pytest.mark.usefixtures("npm_packages_of_mcp")
def test_over_http_a_denial_reaches_the_client(
    sqlite_registry: LiveRegistry, service: str, tmp_path: Path
) -> None:
    person = Person(sqlite_registry, ["deny"])
    with (
        http_server(sqlite_registry, tmp_path / "agent.json") as url,
        client({"url": url, "era": "auto", "links": True}, person) as session,
    ):
        asked = {"service": service, "capabilities": CAPABILITIES}
        assert session.call("request_access", **asked)["status"] == "denied"
