"""The JavaScript client, written from docs/protocol.md alone, runs on a live registry."""

import json
import re
import secrets
import shutil
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.actors import LivePerson
from tests.http_server import Quiet, serving
from tests.live import ROOT, LiveRegistry

pytestmark = pytest.mark.node

CLIENT = ROOT / "examples" / "agent.mjs"
STEPS = [
    *(
        "key",
        "registered",
        "service_provider",
        "requested",
        "decided",
        "renewed",
        "rotated",
        "token",
    ),
    *("introspected", "allowed", "denied", "revoked", "introspected", "refused"),
]
Step = dict[str, Any]


def node() -> str:
    program = shutil.which("node")
    assert program
    return program


def steps(
    arguments: list[str], on_step: Callable[[Step], None] = lambda _step: None, *, code: int = 0
) -> list[Step]:
    """Run the client to its exit with `code`; returns its JSON lines, given to `on_step` first."""
    command = [node(), str(CLIENT), *arguments]
    said: list[Step] = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        try:
            for line in process.stdout:
                said.append(json.loads(line))
                on_step(said[-1])
            errors = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == code, (said[-1:], errors)
    return said


@pytest.fixture(scope="module")
def strict_provider(sqlite_registry: LiveRegistry) -> str:
    made = ["create_service_provider", "Strict", "--audience", f"{sqlite_registry.services}/mine"]
    return str(sqlite_registry.manage(*made, "--allow", "read:calendar")["slug"])


class Owner(LivePerson):
    """Claims the agent and approves its requests, when the client asks for it."""

    def watch(self, step: Step) -> None:
        if step["step"] == "registered":
            self.claim(step["claim_url"], step["claim_code"])
        if step["step"] == "requested":
            done = self.decide(step["grant_id"], self.sign(step["grant_id"]))
            assert done.status_code == 200, done.text


@pytest.mark.production
@pytest.mark.parametrize(("alg", "more"), [("EdDSA", ["--require-nonce"]), ("ES256", [])])
def test_a_client_in_javascript_goes_from_registration_to_revocation(
    sqlite_registry: LiveRegistry, tmp_path: Path, alg: str, more: list[str]
) -> None:
    audience = f"{sqlite_registry.services}/{alg}"
    made = [
        "create_service_provider",
        alg,
        "--audience",
        audience,
        "--allow",
        "read:calendar",
        *more,
    ]
    provider = sqlite_registry.manage(*made)
    (tmp_path / "secret").write_text(provider["client_secret"])
    arguments = [
        "--registry",
        sqlite_registry.url,
        "--service-provider",
        provider["slug"],
        "--alg",
        alg,
    ]
    arguments += [
        "--client-id",
        provider["client_id"],
        "--client-secret-file",
        str(tmp_path / "secret"),
    ]
    arguments += ["--key", str(tmp_path / "key.json")]
    owner = Owner(sqlite_registry, f"{secrets.token_hex(4)}@example.org")
    with closing(owner.http):
        said = steps([*arguments, "--renew", "--rotate"], owner.watch)
    assert [step["step"] for step in said] == STEPS
    registered, renewed, rotated = said[1], said[5], said[6]
    assert renewed["expires_at"] > registered["expires_at"]
    assert rotated["former"] == "invalid_client"
    known, allowed, denied, _, unknown, refused = said[-6:]
    assert (known["active"], known["cnf"]) == (True, {"jkt": rotated["jkt"]})
    assert (allowed["valid"], allowed["capability"]) == (
        True,
        {"type": "read", "resource": "calendar"},
    )
    assert (denied["error"], denied["reason"]) == ("insufficient_scope", "no_capability")
    assert unknown == {"step": "introspected", "active": False}
    assert (refused["error"], refused["reason"]) == ("invalid_token", "revoked")
    again = steps([*arguments, "--url", "http://127.0.0.1:8003/"], code=1)[1]
    assert (again["agent_id"], again["jkt"]) == (registered["agent_id"], rotated["jkt"])
    assert (again["status"], again["expires_at"]) == ("active", renewed["expires_at"])


@pytest.mark.production
@pytest.mark.parametrize(
    "path", ["/elsewhere", "/mine-not/x", "/mine/../x", "/mine/%2e%2E/x", "@/mine"]
)
def test_a_client_in_javascript_does_not_sign_outside_the_audience(
    sqlite_registry: LiveRegistry, strict_provider: str, path: str
) -> None:
    arguments = ["--registry", sqlite_registry.url, "--service-provider", strict_provider]
    refusal = steps([*arguments, "--url", f"{sqlite_registry.services}{path}"], code=1)[-1]
    assert re.search("is not under|dot segments|not a URL", refusal["error_description"])


class Busy(Quiet):
    """A registry that fails the first registration, and redirects the retry elsewhere."""

    seen: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        found = {"version": 1, "issuer": f"http://{self.headers['Host']}", "algorithms": ["EdDSA"]}
        self.say(200, found)

    def do_POST(self) -> None:
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        self.body()
        self.say(
            503 if len(self.seen) == 1 else 307,
            {"error": "temporarily_unavailable"},
            {"Location": "/elsewhere", "Retry-After": "0"},
        )


def test_js_client_retries_with_a_new_proof_and_follows_no_redirect() -> None:
    with serving(Busy) as url:
        refusal = steps(["--registry", url, "--service-provider", "x"], code=1)[-1]
    assert refusal["error_description"] == "a redirect from /v1/agents"
    first, second = Busy.seen
    assert first["idempotency-key"] == second["idempotency-key"]
    assert first["dpop"] != second["dpop"]


def test_a_client_in_javascript_makes_the_bytes_of_the_example() -> None:
    (said,) = steps(["--example"])
    assert said["same"] == said["of"] > 20


def test_a_client_in_javascript_sees_a_byte_that_differs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "example.md").read_text()
    (tmp_path / "example.md").write_text(page.replace("hL_oexkb", "hL_oexkc", 1))
    said = steps(["--example", "--page", str(tmp_path / "example.md")], code=1)
    assert [step.get("name", step["step"]) for step in said] == ["ath", "example", "error"]
