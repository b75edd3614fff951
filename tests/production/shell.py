"""A root shell that runs the page's blocks in order, keeping variables from block to block."""

import os
import select
import subprocess
from collections.abc import Callable
from pathlib import Path

# The longest a block may take: more than a busy machine needs, less than CI waits.
PATIENCE_SECONDS = 300


class Shell:
    """One bash. `prelude` replaces what the machine lacks; `systemctl` gets its arguments."""

    def __init__(
        self, directory: Path, env: dict[str, str], prelude: str, systemctl: Callable[..., None]
    ) -> None:
        self.directory, self.systemctl = directory, systemctl
        told, tell = os.pipe()
        answered, answer = os.pipe()
        self.log = directory / "shell.log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["bash", "--norc", "--noprofile"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=env,
                cwd=directory,
                pass_fds=(tell, answered),
                text=True,
            )
        os.close(tell)
        os.close(answered)
        self.told, self.answer = os.fdopen(told), os.fdopen(answer, "w")
        self.done = f"echo done >&{tell}"
        self._send(
            f'set -euo pipefail\nsystemctl() {{ echo "$*" >&{tell}; IFS= read -r _ '
            f"<&{answered}; }}\n{prelude}\n"
        )

    def run(self, block: str) -> str:
        """What the block printed. Raises AssertionError with the output if a command failed."""
        before = self.log.stat().st_size
        script = self.directory / "block.sh"
        script.write_text(block)
        self._send(f". {script} </dev/null\n{self.done}\n")
        while select.select([self.told], [], [], PATIENCE_SECONDS)[0] and (
            line := self.told.readline()
        ):
            if line == "done\n":
                return self._said(before)
            self.systemctl(*line.split())
            self.answer.write("\n")
            self.answer.flush()
        raise AssertionError(
            f"a block of docs/install.md or upgrade.md failed:\n{block}\n{self._said(before)}"
        )

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        # A block that waits for input gets none.
        self.answer.close()
        self.process.terminate()
        self.process.wait(60)
        self.told.close()

    def _send(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def _said(self, since: int) -> str:
        return self.log.read_bytes()[since:].decode(errors="replace")
