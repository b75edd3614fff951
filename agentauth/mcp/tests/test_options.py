"""How the server is started, and what it says to an HTTP request from elsewhere."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import Client, StdioServerParameters

from agentauth.mcp.__main__ import main
from agentauth.mcp.options import Options
from agentauth.mcp.server import make_server, transport_security
from agentauth.mcp.tests.sessions import body_of
from agentauth.mcp.tests.test_server import ASK, called
from agentauth.mcp.url_elicitation import qr_code
from agentauth.protocol.errors import AgentAuthError
from agentauth.sdk.tests.fake_registry import URL, FakeRegistry

ROOT = Path(__file__).resolve().parents[3]
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-11-25",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"registry_url": "http://registry.example.com"}, "https"),
        ({"registry_url": "https://registry.example.com/path"}, "origin"),
        ({"host": "0.0.0.0"}, "acts as this agent"),
        ({"transport": "pigeon"}, "stdio or http"),
        ({"wait_seconds": 51}, "wait_seconds"),
        ({"port": 65_536}, "port"),
    ],
)
def test_options_that_cannot_be_used_are_one_sentence(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(AgentAuthError, match=said):
        Options(**{"registry_url": URL, **wrong})


def test_another_address_needs_the_hosts_of_its_requests() -> None:
    assert Options(registry_url=URL, host="0.0.0.0", allowed_hosts=("mcp.example.com",))


def test_an_enrolment_code_is_not_in_the_repr() -> None:
    assert "s3cret" not in repr(Options(registry_url=URL, enrolment_code="s3cret"))


def test_the_command_refuses_options_with_one_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--registry", "ftp://x", "--http"])
    assert ended.value.code == 2
    assert "Use https" in capsys.readouterr().err


def posted(options: Options, **headers: str) -> int:
    """The status of an `initialize` over HTTP with these headers."""

    async def story() -> int:
        server = make_server(options)
        app = server.streamable_http_app(transport_security=transport_security(options))
        async with (
            server.session_manager.run(),
            httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app)) as http,
        ):
            usual = {"Accept": "application/json, text/event-stream"}
            answer = await http.post(
                "http://127.0.0.1:8765/mcp", json=INITIALIZE, headers={**usual, **headers}
            )
            return answer.status_code

    return asyncio.run(story())


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8765", "Origin": "http://localhost:3000"}, 200),
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example:8765"}, 421),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_http_requests_of_other_origins_are_refused(headers: dict[str, str], status: int) -> None:
    assert posted(Options(registry_url=URL, transport="http"), **headers) == status


def test_a_public_address_takes_only_the_named_hosts() -> None:
    options = Options(
        registry_url=URL, transport="http", host="0.0.0.0", allowed_hosts=("mcp.example.com",)
    )
    assert posted(options, Host="mcp.example.com") == 200
    assert posted(options, Host="127.0.0.1:8765") == 421


def test_a_link_is_also_a_qr_code_if_asked_for(registry: FakeRegistry, tmp_path: Path) -> None:
    result, state = called(
        registry, tmp_path, ("request_access", ASK), ("access_status", {}), qr_code=True
    )
    [_, code] = result.content
    assert code.text == qr_code(body_of(result)["approval_url"])
    assert "█" in code.text
    assert len(state.content) == 1


def test_qr_codes_without_their_package_fail_at_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    with pytest.raises(ImportError, match="pip install segno"):
        make_server(Options(registry_url=URL, qr_code=True))


PAGE = (ROOT / "docs/mcp.md").read_text()


@pytest.mark.slow
def test_the_configuration_on_the_page_starts_the_server() -> None:
    [written] = re.findall(r"```json\n(.+?)```", PAGE, re.DOTALL)
    named = json.loads(written)["mcpServers"]["agentauth"]
    assert named.pop("command") == "python"
    process = StdioServerParameters(command=sys.executable, cwd=str(ROOT), **named)

    async def story() -> dict[str, list[str]]:
        async with Client(process) as client:
            listed = await client.list_tools()
            return {tool.name: [*tool.input_schema["properties"]] for tool in listed.tools}

    tools = asyncio.run(story())
    rows = re.findall(r"^\| `(\w+)\((.+?)\)` \|", PAGE, re.MULTILINE)
    assert {name: arguments.split(", ") for name, arguments in rows} == tools


@pytest.mark.slow
def test_the_package_alone_needs_no_further_packages() -> None:
    blocked = "import sys; sys.modules['mcp'] = sys.modules['mcp_types'] = None; "
    done = subprocess.run(
        [sys.executable, "-c", blocked + "import agentauth.mcp as m; m.Options; m.run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "ImportError: For MCP, install the extra: pip install 'agentauth-sdk[mcp]'"
    )
