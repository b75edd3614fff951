"""The example a newcomer copies from the README runs as printed, with the address and the id put in."""

import asyncio
import json
import re
import subprocess
import sys
import textwrap
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from agentauth.sdk import Action, GrantPendingError, VerifierClient
from tests.live import ROOT, LiveRegistry

pytestmark = pytest.mark.flow


def printed_example(
    registry_url: str, service_provider_id: str
) -> Callable[[], Coroutine[Any, Any, dict[str, str]]]:
    """The README's Python block as the body of an async function that gives back its `headers`."""
    (block,) = re.findall(r"```python\n(.+?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    for placeholder, real in (
        ("https://registry.example.com", registry_url),
        ("service-provider-id", service_provider_id),
    ):
        assert placeholder in block
        block = block.replace(placeholder, real)
    source = "async def example():\n" + textwrap.indent(block, "    ") + "    return headers\n"
    names: dict[str, Any] = {}
    exec(compile(source, "README.md", "exec"), names)  # noqa: S102 — our own page, run as a reader would
    example: Callable[[], Coroutine[Any, Any, dict[str, str]]] = names["example"]
    return example


def test_the_readme_s_example_runs_as_printed(
    sqlite_registry: LiveRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr("sys.platform", "linux")
    provider = sqlite_registry.manage(
        "create_service_provider",
        "Readme",
        "--audience",
        "http://127.0.0.1:8001/api",
        "--allow",
        "read:calendar",
    )
    example = printed_example(sqlite_registry.url, provider["client_id"])
    with pytest.raises(GrantPendingError) as pending:
        asyncio.run(example())
    decided = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.decide",
            json.dumps({"act": "approve", "id": pending.value.grant_id}),
        ],
        cwd=ROOT,
        env=sqlite_registry.env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert decided.returncode == 0, decided.stderr
    headers = asyncio.run(example())
    with VerifierClient(sqlite_registry.url, provider["client_id"], provider["client_secret"]) as verifier:
        allowed = verifier.verify(
            token=headers["Authorization"].removeprefix("DPoP "),
            proof=headers["DPoP"],
            method="POST",
            url="http://127.0.0.1:8001/api/events",
            action=Action("read", "calendar"),
        )
    assert allowed.grant_id == pending.value.grant_id
