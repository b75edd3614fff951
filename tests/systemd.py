"""What systemd itself says about the sandbox of unit files: `systemd-analyze security`."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)
# From 0 (no rights) to 100. Without the sandbox, units as ours have 85 and more.
MAX_EXPOSURE = 30


def exposed(units: Iterable[Path]) -> dict[str, str]:
    """Each unit whose exposure is above MAX_EXPOSURE, with the rights that it has.

    The drop-in files beside the units count.
    """
    found = {}
    for unit in units:
        command = ["systemd-analyze", "security", "--offline=true", "--json=short"]
        done = subprocess.run(
            [*command, f"--threshold={MAX_EXPOSURE}", unit],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            rights = json.loads(done.stdout) if done.stdout else []
            found[unit.name] = done.stderr + str(
                [each["name"] for each in rights if each["exposure"]]
            )
    return found
