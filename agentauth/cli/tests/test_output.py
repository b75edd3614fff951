"""Text from other parties reaches a terminal as text: no command of the SDK prints a character that
does not show as itself.
"""

import json
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.cells import cell_len

from agentauth.cli import main
from agentauth.cli.output import show_lines
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk.tests.fake_registry import AUDIENCE, GRANT_ID, SP_ID, URL, FakeRegistry, grant

# Title and colour of a terminal, C1, a bell, a bidi override, invisible characters, a pile of
# marks.
HOSTILE = "x\x1b]0;t\x07\x1b[8m\x9b2J\x7f\r\u202egpj\u200b\u2028\ue000a" + "\u0301" * 9
LINES = f"{HOSTILE}\r\nok  True\nerror: none"
DENIED = {"error": "invalid_grant", "error_description": LINES, "reason": HOSTILE, HOSTILE: HOSTILE}


def registered(request: httpx.Request) -> httpx.Response | None:
    if request.url.path == "/v1/agents":
        body = {
            "agent_id": HOSTILE,
            "status": "unclaimed",
            "jkt": "x",
            "expires_at": "2099-01-01T00:00:00Z",
        }
        return httpx.Response(
            200, json=body | {"claim_url": f"{URL}/claim/{HOSTILE}/", "claim_code": HOSTILE}
        )
    return None


def decided(request: httpx.Request) -> httpx.Response | None:
    if request.url.path == "/v1/grants" and request.method == "POST":
        asked = grant(status="pending", approval_url=f"{URL}/{LINES}")
        return httpx.Response(201, json=asked | {"interval": 2})
    if request.url.path == f"/v1/grants/{GRANT_ID}":
        return httpx.Response(200, json=grant(status="denied", granted=None, deny_reason=LINES))
    return None


def refused(request: httpx.Request) -> httpx.Response | None:
    return httpx.Response(403, json=DENIED) if request.url.path == "/v1/tokens" else None


def answered(body: str | dict[str, Any], request: httpx.Request) -> httpx.Response | None:
    if str(request.url).startswith(AUDIENCE):
        return httpx.Response(200, content=body if isinstance(body, str) else json.dumps(body))
    return None


ASKS: list[tuple[str, Any, list[str]]] = [
    ("register", registered, ["register", "-c", "read:calendar"]),
    ("request", decided, ["request", SP_ID, "-c", "read:calendar", "--wait"]),
    ("token", refused, ["token", SP_ID]),
    ("call", lambda r: answered(LINES, r), ["call", SP_ID, "GET", "/v1/events"]),
    (
        "call",
        lambda r: answered({HOSTILE: [HOSTILE, "\ud800"]}, r),
        ["call", SP_ID, "GET", "/v1/events"],
    ),
]


def assert_shows_as_text(printed: str) -> None:
    for line in printed.split("\n"):
        assert line == printable(line)
        assert not line.startswith(("ok  True", "error: none"))


@pytest.mark.usefixtures("slept")
@pytest.mark.parametrize("more", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize(("name", "script", "asked"), ASKS)
def test_no_command_prints_what_does_not_show_as_itself(
    agent: FakeRegistry,
    capsys: pytest.CaptureFixture[str],
    name: str,
    script: Any,
    asked: list[str],
    more: list[str],
) -> None:
    assert main(["register", "-c", "read:calendar"]) == 0
    capsys.readouterr()
    agent.grants = [] if name == "request" else [grant()]
    agent.script = script
    main([*asked, *more])
    printed = capsys.readouterr()
    assert "gpj" in printed.out + printed.err
    assert_shows_as_text(printed.out)
    assert_shows_as_text(printed.err)


@pytest.mark.parametrize("more", [[], ["--json"]], ids=["lines", "json"])
@pytest.mark.parametrize("command", ["verify-log", "verify-receipt", "verify-proof"])
def test_no_check_of_a_file_prints_what_does_not_show_as_itself(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, more: list[str]
) -> None:
    """The sender chooses the name of a file and its content."""
    sent = tmp_path / HOSTILE
    sent.mkdir()
    given = (
        [str(sent)] if command != "verify-proof" else ["--bundle", str(sent), "--event", str(sent)]
    )
    (tmp_path / "keys").write_text("")
    main([command, *given, "--trusted-keys", str(tmp_path / "keys"), *more])
    printed = capsys.readouterr()
    assert printed.out + printed.err
    assert_shows_as_text(printed.out)
    assert_shows_as_text(printed.err)


@pytest.mark.parametrize("letter", ["p", "漢"])
def test_no_line_that_a_terminal_breaks_looks_like_a_name(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, letter: str
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    forged = letter + "ok  true".join([" " * columns for columns in (71, 70, 72, 73)])
    link = f"{URL}/{'x' * 100}"
    show_lines({"status": 403, "body": forged, "approval_url": link, "ok": False, "said": ["a b"]})
    lines = capsys.readouterr().out.splitlines()
    assert f"approval url  {link}" in lines
    names = ("status", "body", "approval url", "ok", "said", "")
    for line in lines:
        assert cell_len(line) <= 80 or link in line
        assert line.startswith(tuple(f"{name:<12}  " for name in names))
    assert len([line for line in lines if line.startswith("ok ")]) == 1


def test_the_lines_of_a_text_are_kept_and_taken_for_no_other(
    agent: FakeRegistry, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["register", "-c", "read:calendar"])
    agent.grants = [grant()]
    agent.script = lambda r: answered("one\r\nok  True\n", r)
    capsys.readouterr()
    assert main(["call", SP_ID, "GET", "/v1/events"]) == 0
    assert (
        capsys.readouterr().out
        == "status  200\nbody    one\n        ok  True\n        \nok      true\n"
    )
