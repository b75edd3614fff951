"""Tools for agent frameworks, each with the framework's own agent in an environment of its own."""

import subprocess
from pathlib import Path

import pytest

from tests import pinned

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tests/frameworks"

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.mark.parametrize("name", ["autogen", "langchain", "openai-agents"])
def test_the_stories_of_a_framework_pass(name: str) -> None:
    python = pinned.environment(name, STORIES / f"{name}.txt") / "bin/python"
    story = STORIES / f"{name.replace('-', '_')}_story.py"
    alone = ["-c", "/dev/null", "--rootdir", ".", "--confcutdir", str(STORIES), "-W", "error"]
    done = subprocess.run(
        [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *alone, story],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    assert " passed" in done.stdout
