"""The commands of an agent that came with `agentauth`: waiting, grants, whoami, exit codes."""

import asyncio
import json
import re
import sys
from types import ModuleType
from typing import Any

import httpx
import pytest

from agentauth.cli import main
from agentauth.cli.tests.test_commands import answer, decides
from agentauth.sdk.tests.fake_registry import (
    AGENT_ID,
    AUDIENCE,
    GRANT_ID,
    SP_ID,
    URL,
    FakeRegistry,
    grant,
)
from agentauth.sdk.tests.fake_registry import error as refusal

OTHER = GRANT_ID[:-1] + "9"
COLUMNS = ["grant id", "status", "service provider", "capabilities", "valid until"]
CONFIRMATION = "01900000-0000-7000-8000-000000000004"


@pytest.fixture
def known(agent: FakeRegistry, capsys: pytest.CaptureFixture[str]) -> FakeRegistry:
    """A registered agent without a grant."""
    answer(capsys, "register", "-c", "read:calendar")
    return agent


def test_a_time_limit_without_a_wait_is_refused(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = answer(capsys, "request", SP_ID, "-c", "read:calendar", "--timeout", "5")
    assert (code, told["error"]) == (2, "usage")
    assert "add --wait" in told["error_description"]
    assert not known.sent("POST", "/v1/grants")


def test_a_command_interrupted_with_ctrl_c_exits_with_130(
    agent: FakeRegistry,
) -> None:
    def interrupted(_request: httpx.Request) -> httpx.Response:
        raise KeyboardInterrupt

    agent.script = interrupted
    assert main(["register", "-c", "read:calendar"]) == 130


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize(("status", "code"), [("approved", 0), ("denied", 1), ("expired", 1)])
def test_wait_ends_with_the_decision(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], status: str, code: int
) -> None:
    known.grants = [grant(status="pending")]
    known.script = decides("pending")
    assert main(["request", SP_ID, "-c", "read:calendar"]) == 0
    known.script = decides(status)
    capsys.readouterr()
    assert main(["wait", "--json"]) == code
    printed = capsys.readouterr()
    assert json.loads(printed.out)["status"] == status


@pytest.mark.parametrize("grants", [[], [GRANT_ID, OTHER]])
def test_wait_without_an_id_needs_exactly_one_that_waits(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], grants: list[str]
) -> None:
    known.grants = [grant(status="pending", grant_id=each) for each in grants]
    code, told = answer(capsys, "wait")
    assert (code, told["error"]) == (2, "usage")
    assert "agentauth grants" in told["error_description"]


def test_a_wait_that_takes_too_long_exits_with_3(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep

    async def for_ever(seconds: float) -> None:
        # The request itself waits for nothing.
        await (asyncio.Event().wait() if seconds else sleep(0))

    monkeypatch.setattr(asyncio, "sleep", for_ever)
    known.grants = [grant(status="pending")]
    code, told = answer(capsys, "wait", GRANT_ID, "--timeout", "0.05")
    assert (code, told["error"]) == (3, "timeout")
    assert told["error_description"] == (
        f"No decision within 0.05 s. Run `agentauth wait {GRANT_ID}` to keep waiting."
    )


def test_grants_are_listed_by_state(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    known.grants = [grant(), grant(status="pending", grant_id=OTHER)]
    code, told = answer(capsys, "grants")
    assert (code, [each["grant_id"] for each in told["grants"]]) == (0, [GRANT_ID, OTHER])
    assert told["grants"][0]["capabilities"] == ["read:calendar"]
    only = answer(capsys, "grants", "--status", "pending")[1]["grants"]
    assert [each["grant_id"] for each in only] == [OTHER]
    assert main(["grants"]) == 0
    table = capsys.readouterr().out.splitlines()
    assert re.split(r" {2,}", table[0]) == COLUMNS
    assert table[2].split() == [GRANT_ID, "approved", "sp", "read:calendar", "2099-01-01T00:00:00Z"]


@pytest.mark.parametrize(
    ("status", "path"), [("approved", "revoke"), ("suspended", "revoke"), ("pending", "withdraw")]
)
def test_revoke_ends_a_grant_in_any_state(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], status: str, path: str
) -> None:
    known.grants = [grant(status=status)]

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/grants/{GRANT_ID}/{path}":
            known.grants = [grant(status="revoked")]
            return httpx.Response(200, json=known.grants[0])
        return None

    known.script = script
    code, told = answer(capsys, "revoke", GRANT_ID)
    assert (code, told["status"]) == (0, "revoked")


def test_whoami_creates_no_key(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str], tmp_path: Any
) -> None:
    code, told = answer(capsys, "whoami")
    assert (code, told["error"]) == (1, "key_file")
    assert list(tmp_path.iterdir()) == []
    answer(capsys, "keygen")
    assert answer(capsys, "whoami")[1]["status"] == "not registered"
    assert agent.requests == []


def test_whoami_asks_the_registry_with_the_agents_key(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    me = {"agent_id": AGENT_ID, "status": "suspended", "expires_at": "2099-01-01T00:00:00Z"}
    known.script = lambda r: httpx.Response(200, json=me) if r.url.path == "/v1/agents/me" else None
    code, told = answer(capsys, "whoami")
    assert (code, told["agent_id"], told["status"]) == (0, AGENT_ID, "suspended")
    assert told["capabilities"] == ["read:calendar"]
    before = len(known.requests)
    assert "status" not in answer(capsys, "whoami", "--offline")[1]
    assert len(known.requests) == before
    printed = json.dumps(told)
    assert "PRIVATE" not in printed


def test_other_capabilities_are_declared_with_renew(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "register", "-c", "write:files")[0] == 1
    assert answer(capsys, "register", "--renew", "-c", "write:files")[0] == 0
    assert answer(capsys, "whoami", "--offline")[1]["capabilities"] == ["write:files"]


def provider(known: FakeRegistry, *answers: httpx.Response) -> None:
    """The service provider answers these, one after the other."""
    known.grants = [grant()]
    left = list(answers)

    def script(request: httpx.Request) -> httpx.Response | None:
        if request.url.path == f"/v1/confirmations/{CONFIRMATION}":
            body = {"confirmation_id": CONFIRMATION, "status": "confirmed"}
            return httpx.Response(200, json=body)
        return left.pop(0) if str(request.url).startswith(AUDIENCE) else None

    known.script = script


STEP_UP = {"confirmation_id": CONFIRMATION, "approval_url": "https://evil.example/", "reason": "x"}


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize(
    ("status", "error", "code"),
    [(403, "insufficient_scope", 1), (404, "x", 1), (403, "step_up_required", 3), (500, "x", 4)],
)
def test_exit_codes_of_a_call(
    known: FakeRegistry,
    capsys: pytest.CaptureFixture[str],
    status: int,
    error: str,
    code: int,
) -> None:
    provider(known, refusal(status, error))
    assert answer(capsys, "call", SP_ID, "GET", "/v1/x")[0] == code


def test_a_call_is_repeated_once_the_person_confirmed_it(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], slept: list[float]
) -> None:
    asked = refusal(403, "step_up_required", None, **STEP_UP)
    provider(known, asked, httpx.Response(201, json={"a": 1}))
    assert main(["call", SP_ID, "POST", "/v1/x", "--wait"]) == 0
    printed = capsys.readouterr()
    assert "status  201" in printed.out
    assert "evil" not in printed.out + printed.err
    keys = {r.headers["Idempotency-Key"] for r in known.requests if r.url.host == "api.sp.example"}
    assert len(keys) == 1


@pytest.mark.usefixtures("slept")
def test_an_unreachable_registry_exits_with_4(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    known.script = lambda _: httpx.ConnectError("refused")
    for command in (["grants"], ["token", SP_ID], ["register", "-c", "read:calendar"]):
        code, told = answer(capsys, *command)
        assert (code, told["error"]) == (4, "temporarily_unavailable")


class Terminal:
    """What is written to it, and that it is a terminal."""

    encoding = "utf-8"

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        """Nothing is held back."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_is_shown_a_code_to_scan_and_others_are_not(
    known: FakeRegistry, capsys: pytest.CaptureFixture[str], slept: list[float]
) -> None:
    known.script = decides("approved")
    assert main(["request", SP_ID, "-c", "read:calendar", "--wait"]) == 0
    plain = capsys.readouterr().err
    assert f"{URL}/approvals/{GRANT_ID}/" in plain
    assert "█" not in plain
    known.script, known.grants = decides("approved"), []
    terminal = Terminal()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert main(["request", SP_ID, "-c", "read:calendar", "--wait"]) == 0
    assert f"{URL}/approvals/{GRANT_ID}/" in terminal.text
    assert "█" in terminal.text


def test_wrong_usage_is_json_too(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = answer(capsys, "call", "x")
    assert (code, told["error"]) == (2, "usage")
    assert "method" in told["error_description"].lower()


def test_mcp_without_its_packages_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The extra `cli` is the subject of tests/flows/test_sdk_wheel.py.
    for name in ("agentauth.mcp", "agentauth.mcp.server"):
        monkeypatch.setitem(sys.modules, name, None)
    assert main(["mcp"]) == 2
    assert "pip install 'agentauth-sdk[mcp]'" in capsys.readouterr().err


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_shells_complete_the_commands(
    shell: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_AGENTAUTH_COMPLETE", f"complete_{shell}")
    for name, value in (
        ("COMP_WORDS", "agentauth who"),
        ("COMP_CWORD", "1"),
        ("_TYPER_COMPLETE_ARGS", "agentauth who"),
        ("_TYPER_COMPLETE_FISH_ACTION", "get-args"),
    ):
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        main([])
    assert "whoami" in capsys.readouterr().out


def test_mcp_runs_the_server_with_the_options(monkeypatch: pytest.MonkeyPatch) -> None:
    server, options = ModuleType("server"), ModuleType("options")
    served: list[Any] = []
    server.run = served.append  # type: ignore[attr-defined]
    options.Options = lambda **given: given  # type: ignore[attr-defined]
    package = ModuleType("agentauth.mcp")
    for name, module in (("", package), (".server", server), (".options", options)):
        monkeypatch.setitem(sys.modules, f"agentauth.mcp{name}", module)
    assert main(["mcp", "--registry", URL, "--http", "--service", "a", "--port", "1"]) == 0
    assert (
        served[0]
        | {
            "registry_url": URL,
            "transport": "http",
            "services": ("a",),
            "port": 1,
            "host": "127.0.0.1",
        }
        == (served[0])
    )


def test_wrong_argument_names_the_command_whose_help_to_read(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["request", "my-api", "calendar"]) == 2
    assert "See agentauth request --help." in capsys.readouterr().err
    assert main(["nothing"]) == 2
    assert "See agentauth --help." in capsys.readouterr().err
