"""Reads a tutorial as its reader does: runs its blocks in order, in a folder of their own.

A block `sh` is run. Its title may be "keeps running", "exits with N", or "at the registry", where
the operator runs it in the checkout. A block with a file name as its title is written to that file.
A block `text` is what the block before it printed; `…` stands for anything.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import httpx

from tests.live import ROOT, LiveRegistry

PATIENCE_SECONDS = 120
_BLOCK = re.compile(r"^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\S+/approvals/([0-9a-f-]{36})/|\S+[?&]grant=([0-9a-f-]{36})")
_INSTALL = re.compile(
    r"^pip install '\./(agentauth_sdk)-[0-9.]+-py3-none-any\.whl\[([a-z,]+)\]'.*$", re.MULTILINE
)
_KEPT = re.compile(r"^(?:export |\. ).*$", re.MULTILINE)
BACKGROUND = "keeps running"
OPERATOR = "at the registry"
# Commands of packages that a page installs beside the SDK.
SERVERS = ("flask", "uvicorn")


@dataclass(frozen=True)
class Block:
    language: str
    title: str
    text: str


def blocks(page: str, *sections: str) -> list[Block]:
    """The blocks of a page of docs/; with `sections`, those below headings of these names."""
    parts = re.split(r"^## ", (ROOT / "docs" / page).read_text(), flags=re.MULTILINE)
    headings = {part.partition("\n")[0] for part in parts[1:]}
    assert set(sections) <= headings, headings
    chosen = [part for part in parts if not sections or part.partition("\n")[0] in sections]
    return [Block(*found) for part in chosen for found in _BLOCK.findall(part)]


def build_wheel(folder: Path) -> Path:
    build = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT))
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


@dataclass
class Reader:
    """Follows pages in `folder`. `names` are texts of the pages and what they are here."""

    folder: Path
    wheel: Path
    names: dict[str, str]
    registry: LiveRegistry
    printed: str = ""
    _kept: list[str] = field(default_factory=list)
    _running: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._running:
            with process, contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)

    def follow(self, page: list[Block]) -> None:
        for block in page:
            text = self.here(block.text)
            if block.language == "text":
                self.compare(text)
            elif block.language == "sh":
                self.run(text, block.title)
            else:
                assert block.title, f"this block has no file name:\n{text}"
                (self.folder / block.title).write_text(text)

    def here(self, text: str) -> str:
        for printed, real in self.names.items():
            text = text.replace(printed, real)
        return text

    def compare(self, expected: str) -> None:
        parts = [re.escape(part) for part in " ".join(expected.split()).split("…")]
        printed = " ".join(self.printed.split())
        assert re.search(".*".join(parts), printed), f"{expected}\nis not in\n{self.printed}"

    def run(self, text: str, title: str) -> None:
        """Run a block, and decide about each link that it prints."""
        operates = title == OPERATOR
        text = text.replace(".venv/bin/python", sys.executable)
        script = "\n".join(["set -e", *self._kept, self._installed(text)])
        process = subprocess.Popen(
            ["bash", "-c", script],
            cwd=ROOT if operates else self.folder,
            env=self.registry.env if operates else self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        if title == BACKGROUND:
            self._running.append(process)
            self._wait_until_it_listens(process)
            return
        decided: set[str] = set()
        self.printed = ""
        with process:
            assert process.stdout
            for line in process.stdout:
                self.printed += line
                for found in _LINK.findall(line):
                    [grant_id] = filter(None, found)
                    if grant_id not in decided:
                        decided.add(grant_id)
                        self.registry.act("tests.decide", "approve", {"id": grant_id})
        code = int(title.removeprefix("exits with ")) if title.startswith("exits with ") else 0
        assert process.returncode == code, f"{text}\n{self.printed}"
        self._kept += _KEPT.findall(text)
        if "bin/activate" in text:
            self._lend_packages()

    def environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return kept | {"HOME": str(self.folder), "PYTHONUNBUFFERED": "1"}

    def _installed(self, text: str) -> str:
        """The same, with the wheel of this checkout in place of the released one."""
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        for _, named in _INSTALL.findall(text):
            assert set(named.split(",")) <= extras["optional-dependencies"].keys()
        return _INSTALL.sub(f"pip install --quiet --no-index --no-deps {self.wheel}", text)

    def _lend_packages(self) -> None:
        """Let the reader's environment find our packages: the page would download them."""
        for folder in self.folder.glob("*/lib/python*/site-packages"):
            (folder / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
        for folder in self.folder.glob("*/bin"):
            for name in SERVERS:
                (folder / name).write_text(f'#!/bin/sh\nexec {folder}/python -m {name} "$@"\n')
                (folder / name).chmod(0o755)

    def _wait_until_it_listens(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            assert process.poll() is None, process.stdout and process.stdout.read()
            try:
                httpx.get(self.here("http://localhost:9000"), timeout=5)
            except httpx.TransportError:
                time.sleep(0.1)
            else:
                return
        raise AssertionError("nothing listens")
