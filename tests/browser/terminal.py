"""The demo agent in its terminal, as `make demo` runs it."""

import queue
import re
import signal
import subprocess
import sys
import threading

from playwright.sync_api import Page, expect

from tests.browser import steps
from tests.live import ROOT, LiveRegistry

# A hang, on a busy machine too.
SECONDS = 180


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
    steps.follow(page, page.get_by_role("button", name="Approve with passkey"))
    expect(page.get_by_role("main")).to_contain_text("Approved")
