"""The JavaScript log verifier, called from Python."""

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Verdict = dict[str, Any]
# Arguments of verify_log.mjs → its verdict.
Ask = Callable[..., Verdict]


@contextmanager
def asking() -> Iterator[Ask]:
    """One process that answers any number of questions. It needs Node.js."""
    command = ["node", str(HERE / "verify_many.mjs")]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        asked, answers = process.stdin, process.stdout

        def ask(*arguments: str) -> Verdict:
            asked.write(json.dumps(arguments) + "\n")
            asked.flush()
            answer: Verdict = json.loads(answers.readline())
            return answer

        yield ask
        asked.close()
        assert process.wait() == 0
