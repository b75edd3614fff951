"""Each block of each tutorial runs as printed, with the wheel alone, at a live registry."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agentauth.sdk import Action, AgentAuthError, VerifierClient
from agentauth.sdk.refusal_responses import answer_for
from tests.flows.tutorials import Reader, blocks, build_wheel
from tests.http_server import Quiet, serving
from tests.live import LiveRegistry
from tests.postgres import free_port

pytestmark = pytest.mark.flow

ALLOW = ("read:calendar", "write:calendar")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@contextmanager
def api(registry: LiveRegistry, name: str) -> Iterator[tuple[str, str]]:
    """An API that asks verify: its slug and its address."""

    class Api(Quiet):
        def answer(self) -> None:
            try:
                verifier.verify(
                    token=self.headers["Authorization"].removeprefix("DPoP "),
                    proof=self.headers["DPoP"],
                    method=self.command,
                    url=address + self.path,
                    action=Action("read" if self.command == "GET" else "write", "calendar"),
                )
                self.say(200, {"events": ["Lunch"]})
            except AgentAuthError as error:
                refusal = answer_for(error)
                self.say(refusal.status, refusal.body)

        do_GET = do_POST = answer  # noqa: N815 — named by http.server

    # First of all, so that nothing else takes the port meanwhile.
    with serving(Api) as url:
        address = url.replace("127.0.0.1", "localhost")
        made = registry.manage(
            "create_service_provider", name, "--audience", address, "--allow", *ALLOW
        )
        with VerifierClient(registry.url, made["client_id"], made["client_secret"]) as verifier:
            yield made["slug"], address


def test_an_agent_in_ten_minutes(
    sqlite_registry: LiveRegistry, wheel: Path, tmp_path: Path
) -> None:
    with api(sqlite_registry, "Calendar") as (slug, address):
        names = {
            "http://localhost:8000": sqlite_registry.url,
            "http://localhost:9000": address,
            "my-api": slug,
        }
        with Reader(tmp_path, wheel, names, sqlite_registry) as reader:
            page = blocks("tutorial-agent.md")
            last = next(i for i, block in enumerate(page) if "revoke GRANT" in block.text)
            reader.follow(page[:last])
            names["GRANT"] = re.findall(r"[0-9a-f-]{36}", reader.printed)[-1]
            reader.follow(page[last:])
            assert "revoked" in reader.printed


@pytest.mark.long
def test_mcp_in_five_minutes(sqlite_registry: LiveRegistry, wheel: Path, tmp_path: Path) -> None:
    with api(sqlite_registry, "Diary") as (slug, address):
        names = {
            "http://localhost:8000": sqlite_registry.url,
            "http://localhost:9000": address,
            "my-api": slug,
        }
        with Reader(tmp_path, wheel, names, sqlite_registry) as reader:
            reader.follow(blocks("tutorial-mcp.md"))
            assert "approved" in reader.printed


@pytest.mark.long
def test_the_commands_with_the_key_in_the_environment_act_as_one_agent(
    sqlite_registry: LiveRegistry, wheel: Path, tmp_path: Path
) -> None:
    """docs/cli.md, after the installation of the tutorial."""
    with api(sqlite_registry, "Nightly") as (slug, _):
        names = {"http://localhost:8000": sqlite_registry.url, "my-api": slug}
        with Reader(tmp_path, wheel, names, sqlite_registry) as reader:
            reader.follow(blocks("tutorial-agent.md", "1. Install"))
            reader.run(f"export AGENTAUTH_REGISTRY={sqlite_registry.url}", "")
            reader.follow(blocks("cli.md"))
        assert not list(tmp_path.glob(".config/agentauth/*.json"))


@pytest.mark.long
@pytest.mark.parametrize("framework", ["FastAPI", "Flask"])
def test_protect_an_api_in_ten_minutes(
    sqlite_registry: LiveRegistry, wheel: Path, tmp_path: Path, framework: str
) -> None:
    port = str(free_port())
    names = {
        "http://localhost:8000": sqlite_registry.url,
        "9000": port,
        "My API": f"My API {framework}",
        "my-api": f"my-api-{framework.lower()}",
    }
    with Reader(tmp_path, wheel, names, sqlite_registry) as reader:
        page = blocks("tutorial-api.md", "1. Register the API")
        reader.follow(page[:2])
        for name in ("client_id", "client_secret"):
            found = re.search(rf"^{name}: (.+)$", reader.printed, re.MULTILINE)
            assert found
            names[name.upper().replace("_", "-")] = found[1]
        reader.follow(page[2:])
        for section in (f"2. Protect it: {framework}", "3. Call it", "4. What is closed and open"):
            reader.follow(blocks("tutorial-api.md", section))
