"""`agentauth doctor` finds each thing that is wrong, says by how much, and changes nothing."""

import email.utils
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.cli import main
from agentauth.cli.tests.test_commands import answer
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk.tests.fake_registry import AGENT_ID, URL, FakeRegistry

Found = dict[str, tuple[str, str]]


def examined(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Found]:
    """The exit code, and state and detail by check."""
    code, told = answer(capsys, "doctor", *arguments)
    return code, {each["check"]: (each["state"], each["detail"]) for each in told["checks"]}


class Discovery:
    """Answers doctor's questions as a registry does, with what a test changes."""

    def __init__(self) -> None:
        self.issuer: Any = URL
        self.ahead = 0.0
        self.answer: httpx.Response | Exception | None = None
        self.me: dict[str, Any] = {"agent_id": AGENT_ID, "status": "active"}

    def __call__(self, request: httpx.Request) -> httpx.Response | None:
        if request.url.path == "/v1/agents/me":
            return httpx.Response(200, json=self.me)
        return None

    def discovery(self, request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/.well-known/agentauth"
        if isinstance(self.answer, Exception):
            raise self.answer
        date = email.utils.formatdate(int(time.time() - self.ahead), usegmt=True)
        return self.answer or httpx.Response(
            200, json={"issuer": self.issuer}, headers={"Date": date}
        )


@pytest.fixture
def found(agent: FakeRegistry, monkeypatch: pytest.MonkeyPatch) -> Discovery:
    """A registry that also answers calls without a proof, for its description alone."""
    registry = Discovery()
    agent.script = registry
    usual = FakeRegistry.__call__

    def call(self: FakeRegistry, request: httpx.Request) -> httpx.Response:
        if request.url.path.startswith("/.well-known/"):
            return registry.discovery(request)
        return usual(self, request)

    monkeypatch.setattr(FakeRegistry, "__call__", call)
    return registry


def test_all_is_well_with_a_registered_agent(
    found: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    code, checks = examined(capsys)
    assert code == 0
    assert {state for state, _ in checks.values()} == {"ok"}
    assert list(checks) == [
        "versions",
        "address",
        "reachability",
        "clock",
        "key file",
        "manifest",
        "agent",
    ]


def test_before_the_first_request_it_notes_that_there_is_no_key(
    found: Discovery, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, checks = examined(capsys)
    assert (code, checks["key file"][0]) == (0, "note")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("ahead", "code", "state", "words"),
    [
        (0, 0, "ok", "Within 5 s"),
        (20, 0, "note", r"(19|20|21) s ahead of"),
        (312, 1, "problem", r"31[123] s ahead of"),
        (-312, 1, "problem", r"31[123] s behind"),
    ],
)
def test_the_clock_is_compared_with_the_registrys(
    found: Discovery,
    capsys: pytest.CaptureFixture[str],
    ahead: int,
    code: int,
    state: str,
    words: str,
) -> None:
    found.ahead = ahead
    got, checks = examined(capsys)
    assert (got, checks["clock"][0]) == (code, state)
    assert re.search(words, checks["clock"][1])


def redirect() -> httpx.Response:
    return httpx.Response(302, headers={"Location": "https://elsewhere.example"})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: setattr(d, "issuer", "https://other.example"), "calls itself https://other"),
        (lambda d: setattr(d, "issuer", 7), "not as a registry"),
        (lambda d: setattr(d, "answer", httpx.Response(200, text="<html>")), "not as a registry"),
        (lambda d: setattr(d, "answer", httpx.Response(404, json={})), "status 404"),
        (lambda d: setattr(d, "answer", redirect()), "redirects to 'https://elsewhere.example'"),
    ],
)
def test_a_wrong_address_is_found(
    found: Discovery,
    capsys: pytest.CaptureFixture[str],
    change: Callable[[Discovery], None],
    words: str,
) -> None:
    change(found)
    code, checks = examined(capsys)
    assert (code, checks["reachability"][0]) == (1, "problem")
    assert words in checks["reachability"][1]


def test_an_address_that_is_not_encrypted_is_found(
    found: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    code, checks = examined(capsys, "--registry", "http://registry.example.com")
    assert (code, checks["address"][0]) == (1, "problem")
    assert "https" in checks["address"][1]


def test_an_unreachable_registry_is_found_and_exits_with_4(
    found: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    found.answer = httpx.ConnectError("refused")
    code, checks = examined(capsys)
    assert (code, checks["reachability"][0]) == (4, "problem")
    # What needs no registry is still examined.
    assert (checks["key file"][0], checks["manifest"][0]) == ("ok", "ok")
    assert "agent" not in checks


def test_a_key_file_that_others_can_read_is_found(
    found: Discovery, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer(capsys, "keygen")
    (tmp_path / "agent.json").chmod(0o644)
    code, checks = examined(capsys)
    assert (code, checks["key file"][0]) == (1, "problem")
    assert "mode 0644" in checks["key file"][1]


def test_a_key_file_of_another_registry_is_found(
    found: Discovery, capsys: pytest.CaptureFixture[str]
) -> None:
    answer(capsys, "keygen", "--registry", "https://other.example")
    code, checks = examined(capsys)
    assert (code, checks["key file"][0]) == (1, "problem")
    assert "https://other.example" in checks["key file"][1]


@pytest.mark.parametrize(
    ("days", "state", "words"),
    [(400, "problem", "It expired on"), (250, "note", "the next call renews it")],
)
def test_an_old_manifest_is_found(
    found: Discovery,
    agent: FakeRegistry,
    capsys: pytest.CaptureFixture[str],
    time_machine: Any,
    days: int,
    state: str,
    words: str,
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    now = time.time() + days * 86_400
    time_machine.move_to(now, tick=False)
    agent.now = int(now)
    _, checks = examined(capsys)
    assert checks["manifest"][0] == state
    assert words in checks["manifest"][1]


@pytest.mark.parametrize(
    ("status", "state"), [("suspended", "problem"), ("revoked", "problem"), ("unclaimed", "note")]
)
def test_the_state_of_the_agent_is_found(
    found: Discovery, capsys: pytest.CaptureFixture[str], status: str, state: str
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    found.me["status"] = status
    _, checks = examined(capsys)
    assert checks["agent"][0] == state


def test_text_of_the_registry_is_escaped_and_no_key_is_shown(
    found: Discovery, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    answer(capsys, "register", "-c", "read:calendar")
    found.issuer = "https://x\x1b[8m\u202egpj"
    found.me["status"] = "[red]\x1b]0;t\x07"
    key = json.loads((tmp_path / "agent.json").read_text())["private_key"]
    for more in ([], ["--json"]):
        main(["doctor", *more])
        printed = capsys.readouterr()
        assert printed.out
        for line in (printed.out + printed.err).split("\n"):
            assert line == printable(line)
        assert key.split("\n")[1] not in printed.out + printed.err
