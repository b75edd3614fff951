"""Result files: what a benchmark measured, with the command, the day and the machine."""

import json
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.cpu_time import machine

RESULTS: Final = Path(__file__).with_name("results")


def write_result(path: Path, figures: Mapping[str, Any], *, check_us: float) -> None:
    """Write `figures` to `path`. `check_us`: CPU µs of a signature check, the machine's speed."""
    module = Path(sys.argv[0]).stem
    result = {
        "command": " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]]),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": machine(),
        "check_us": round(check_us, 1),
        "figures": figures,
    }
    path.write_text(json.dumps(result, indent=1) + "\n")


def read_result(name: str) -> Any:
    """The committed result file of this name."""
    return json.loads((RESULTS / f"{name}.json").read_text())
