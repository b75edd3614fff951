"""The README's example runs as printed, at the address and with the id of this test."""

import asyncio
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from agentauth import AgentAuthClient
from agentauth.sdk import Action, VerifierClient
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.flow, pytest.mark.production]

LONGEST_SECONDS = 90


def printed_example(registry_url: str, service_provider_id: str) -> str:
    """The README's Python block as an async function that returns its `headers`."""
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for printed, real in (
        ("http://localhost:8000", registry_url),
        ("demo-service", service_provider_id),
    ):
        assert printed in block
        block = block.replace(printed, real)
    return "async def example():\n" + textwrap.indent(block, "    ") + "    return headers\n"


class StoppedError(Exception):
    """The agent's process ends here."""


def test_the_readme_s_example_runs_as_printed_and_asks_once(
    sqlite_registry: LiveRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    provider = sqlite_registry.manage(
        "create_service_provider",
        "Readme",
        "--audience",
        f"{sqlite_registry.services}/calendar",
        "--allow",
        "read:calendar",
    )
    approvals: list[Thread] = []

    def stopped(approval_url: str, claim_code: str) -> None:
        raise StoppedError(approval_url, claim_code)

    def shown(approval_url: str, claim_code: str) -> None:
        """The user needs nothing but what the example prints: open the link, claim, approve."""
        assert (approval_url, claim_code) == before.value.args
        assert claim_code
        (grant_id,) = parse_qs(urlsplit(approval_url).query)["grant"]
        approvals.append(Thread(target=approve, args=(sqlite_registry, grant_id)))
        approvals[0].start()

    def nothing_to_show(approval_url: str, claim_code: str) -> None:
        pytest.fail("the example asks for an approval that it has")

    source = printed_example(sqlite_registry.url, provider["client_id"])
    with pytest.raises(StoppedError) as before:
        run(source, stopped)
    headers = run(source, shown)
    approvals[0].join()
    again = run(source, nothing_to_show)
    with VerifierClient(
        sqlite_registry.url, provider["client_id"], provider["client_secret"]
    ) as verifier:
        grants = {
            verifier.verify(
                token=each["Authorization"].removeprefix("DPoP "),
                proof=each["DPoP"],
                method="GET",
                url=f"{sqlite_registry.services}/calendar/work",
                action=Action("read", "calendar"),
            ).grant_id
            for each in (headers, again)
        }
    assert len(grants) == 1
    events = asyncio.run(AgentAuthClient(sqlite_registry.url).audit_events())
    assert [event["kind"] for event in events].count("registry.grant.requested") == 1


def run(source: str, show: Callable[..., None]) -> dict[str, str]:
    """Run the example with a new client, as a new process would; what it prints goes to `show`."""
    names: dict[str, Any] = {"print": show}
    exec(compile(source, "README.md", "exec"), names)  # noqa: S102 — our own page, run as a reader would
    headers: dict[str, str] = asyncio.run(asyncio.wait_for(names["example"](), LONGEST_SECONDS))
    return headers


def approve(registry: LiveRegistry, grant_id: str) -> None:
    """What a user does on a page; see tests/decide.py."""
    registry.act("tests.decide", "approve", {"id": grant_id})
