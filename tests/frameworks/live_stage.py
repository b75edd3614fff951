"""The tool of docs/agent-frameworks.md as printed, at a live registry, and its person.

It runs in a framework's environment; `live_service` is the other side.
"""

import asyncio
import json
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import httpx
import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs/agent-frameworks.md").read_text()
LIMITS = {"confirm_above": {"value": "50.00", "currency": "EUR"}}
_SUBJECT = re.compile(r"[?&]grant=([0-9a-f-]{36})|/(?:approvals|confirmations)/([0-9a-f-]{36})/")


class LiveStage:
    """`decisions` are what the person does at each link, in order; `links` those that were shown.

    `told` is what `live_service.shop_at` says.
    """

    def __init__(self, framework: str, told: dict[str, str]) -> None:
        self.framework = framework
        self.told = told
        self.decisions: list[tuple[str, dict[str, Any]]] = []
        self.links: list[str] = []
        self._paid_before = len(self._paid())

    def tool(self) -> Any:
        """The page's tool for this framework, as in a newly started process."""
        [block] = re.findall(r"^```python\n(.+?)^```$", PAGE, re.MULTILINE | re.DOTALL)
        for printed, real in (
            ("https://registry.example.com", self.told["registry"]),
            ('"my-api"', f'"{self.told["slug"]}"'),
        ):
            assert printed in block
            block = block.replace(printed, real)
        names: dict[str, Any] = {"print": self.decide}
        exec(compile(block, "agent-frameworks.md", "exec"), names)  # noqa: S102 — our own page
        row = rf"^\| {self.framework}\b.*\| `([\w.]+)` \| `((\w+)\(.+\))` \|$"
        [(module, expression, maker)] = re.findall(row, PAGE, re.MULTILINE)
        names[maker] = getattr(import_module(module), maker)
        [registering] = re.findall(r"`await (client\.register\(.+?)`", PAGE)
        asyncio.run(eval(registering.replace(", …", ""), names))  # noqa: S307 — our own page
        return eval(expression, names)  # noqa: S307 — our own page

    def decide(self, _question: str, url: str, _code: object = None) -> None:
        """The person opens the link and does what `decisions` says next."""
        assert url.startswith(self.told["registry"] + "/")
        self.links.append(url)
        act, wish = self.decisions.pop(0)
        [subject] = filter(None, _SUBJECT.findall(url)[0])
        answer = self._shop("POST", "/person", {"act": act, "subject": subject, **wish})
        assert answer["status"], answer

    @property
    def kinds(self) -> list[str]:
        """What the person decided about, in order."""
        return ["confirmation" if "/confirmations/" in link else "grant" for link in self.links]

    @property
    def paid(self) -> list[Any]:
        """The payments that the shop made since the start of the story."""
        return self._paid()[self._paid_before :]

    def _paid(self) -> list[Any]:
        made: list[Any] = self._shop("GET", "/paid")
        return made

    def _shop(self, method: str, path: str, body: Any = None) -> Any:
        answer = httpx.request(method, self.told["shop"] + path, json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()


@pytest.fixture
def live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LiveStage:
    """Each story has an agent of its own, whose key file is in the usual place."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("NO_PROXY", "*")
    return LiveStage(**json.loads(os.environ["AGENTAUTH_STORY"]))
