"""A registry for browser tests whose commands and scenes run in one process: Django starts once."""

import json
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.live import ROOT, SQLITE, LiveRegistry


class BrowserRegistry(LiveRegistry):
    """Started with its tables and keys; `stop` kills it, because no test reads its data later."""

    def __init__(self, directory: Path, **options: Any) -> None:
        super().__init__(directory, **{"workers": 2, **options})
        self.prepare()
        self.start()
        self._hands = subprocess.Popen(
            [sys.executable, "-m", "tests.browser.stage"],
            cwd=ROOT, env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def manage(self, *arguments: str, check: bool = True) -> Any:
        if not check:
            return super().manage(*arguments, check=check)
        return self._ask({"manage": [*arguments, "--json"]})

    def stage(self, what: str, argument: str) -> dict[str, str]:
        """Set up a scene behind the pages (tests/browser/stage.py): name → path."""
        found: dict[str, str] = self._ask({"stage": [what, argument]})
        return found

    def write(self, statement: str, *values: str) -> int:
        """Change rows behind the pages; returns how many."""
        path = self.directory / SQLITE
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
            return database.execute(statement, values).rowcount

    def _ask(self, what: dict[str, Any]) -> Any:
        assert self._hands.stdin
        assert self._hands.stdout
        print(json.dumps(what), file=self._hands.stdin, flush=True)
        answer = json.loads(self._hands.stdout.readline())
        assert "failed" not in answer, answer["failed"]
        return answer["done"]

    def stop(self) -> None:
        with self._hands as hands:
            hands.kill()
        self.kill()
