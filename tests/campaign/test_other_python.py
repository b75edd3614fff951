"""On the other Python: what service providers and agents install beside the SDK.

`tests.run again` has the SDK and the protocol there, in every run of CI.
"""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests import pinned

ROOT = Path(__file__).resolve().parents[2]
# Each with the tests that it has at least: a suite of which nothing was collected did not pass.
SUITES = {
    "agentauth/integrations/tests/test_conformance.py": 290,
    "agentauth/cli": 140,
    "agentauth/mcp": 340,
}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.skipif(not pinned.OTHER_PYTHON, reason="OTHER_PYTHON names no other Python"),
]


@pytest.mark.parametrize("suite", SUITES)
def test_a_suite_passes_on_the_other_python(suite: str) -> None:
    # The options of this run, such as a coverage report, are not for that one.
    env = {name: each for name, each in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [pinned.OTHER_PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", suite],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    [passed] = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    assert int(passed) >= SUITES[suite]
