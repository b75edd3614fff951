"""`make demo` as a user runs it: real Chromium, a passkey, the demo agent in its terminal."""

import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.live import ROOT, LiveRegistry

pytestmark = [pytest.mark.browser, pytest.mark.flow]
SECONDS = 60


class Terminal:
    """The demo's process, whose lines are read as they arrive."""

    def __init__(self, registry: LiveRegistry) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "examples.demo"],
            cwd=ROOT, env=registry.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line)

    def close(self) -> None:
        # Ctrl-C, as a user stops it: a kill would leave its service running, which keeps the pipe
        # we read open.
        self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(SECONDS / 4)
        except subprocess.TimeoutExpired:
            # On Python 3.11 `asyncio.wait_for` may swallow one: press again.
            self.process.send_signal(signal.SIGINT)
            self.process.wait(SECONDS)
        self.reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def wait_for(self, pattern: str) -> str:
        """The first group of the next line that matches."""
        while True:
            try:
                line = self.lines.get(timeout=SECONDS)
            except queue.Empty:
                raise AssertionError(
                    "no such line: " + pattern + "\n" + "".join(self.seen)
                ) from None
            self.seen.append(line)
            if match := re.search(pattern, line):
                return match[1] if match.groups() else match[0]


def approve_words(page: Page, terminal: Terminal) -> None:
    """The first administrator signs for the words that the demo's service published."""
    page.goto(terminal.wait_for(r"go on without: (\S+)"))
    steps.read(page)
    page.get_by_role("button", name="Approve with passkey").click()
    expect(page.get_by_role("status")).to_contain_text("Approved")


@pytest.fixture
def terminal(sqlite_registry: LiveRegistry) -> Iterator[Terminal]:
    terminal = Terminal(sqlite_registry)
    yield terminal
    terminal.close()


def test_the_demo_from_end_to_end(
    page: Page, sqlite_registry: LiveRegistry, terminal: Terminal
) -> None:
    steps.become_admin(page, sqlite_registry)
    approve_words(page, terminal)
    link = terminal.wait_for(r"Approve here: (\S+)")
    code = terminal.wait_for(r"Claim code: (\S+)")
    steps.claim(page, link, code)
    expect(page.get_by_role("heading", name=re.compile("Research Assistant"))).to_be_visible()
    expect(page.get_by_text("Pays a supplier up to €100.00")).to_be_visible()
    steps.approve(page)

    terminal.wait_for(r"✓ read calendar/work")
    terminal.wait_for(r"✗ send the same request again.*replayed")
    terminal.wait_for(r"✗ read files/reports.*no_capability")
    terminal.wait_for(r"✓ pay 20.00 EUR")
    terminal.wait_for(r"✗ pay 80.00 EUR.*confirm_above")

    page.goto(terminal.wait_for(r"Confirm here: (\S+)"))
    expect(page.get_by_text("80.00").first).to_be_visible()
    steps.read(page)
    page.get_by_role("button", name="Confirm with passkey").click()
    expect(page.get_by_role("status")).to_contain_text("Confirmed")
    terminal.wait_for(r"✓ pay 80.00 EUR to ACME, confirmed")
    terminal.wait_for(r"✗ pay the same 80.00 EUR once more.*already_processed")
    terminal.wait_for(r"✗ pay 30.00 EUR.*budget")

    page.goto(terminal.wait_for(r"Revoke here: (\S+)"))
    page.get_by_role("link", name="Revoke grant").click()
    page.get_by_role("button", name="Revoke for good").click()
    expect(page.get_by_role("status")).to_contain_text("Revoked")
    terminal.wait_for(r"✗ read calendar/work after that.*invalid_token")
    terminal.wait_for(r"Every answer was the one the grant calls for")
    assert terminal.process.wait(SECONDS) == 0
    sqlite_registry.manage("seal_audit")
    assert sqlite_registry.manage("verify_audit")["ok"]
