"""Tools for agent frameworks, each with the framework's own agent in an environment of its own.

The live stories run docs/agent-frameworks.md at a registry.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import pinned
from tests.frameworks.live_service import shop_at
from tests.live import LiveRegistry

ROOT = Path(__file__).resolve().parents[2]
STORIES = ROOT / "tests/frameworks"
# By the lock file's name, what docs/agent-frameworks.md calls it.
FRAMEWORKS = {"autogen": "AutoGen", "langchain": "LangChain", "openai-agents": "OpenAI Agents"}

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(params=["this Python", "the other Python"])
def python(request: pytest.FixtureRequest) -> str:
    if request.param == "this Python":
        return sys.executable
    if not pinned.OTHER_PYTHON:
        pytest.skip("OTHER_PYTHON names no other Python")
    return pinned.OTHER_PYTHON


@pytest.fixture(scope="module")
def shop(sqlite_registry: LiveRegistry) -> Iterator[dict[str, str]]:
    with shop_at(sqlite_registry) as told:
        yield told


def stories_passed(framework: str, python: str, story: str, **env: str) -> int:
    """How many stories of the file passed; all of them did."""
    made = pinned.environment(framework, STORIES / f"{framework}.txt", python) / "bin/python"
    alone = ["-c", "/dev/null", "--rootdir", ".", "--confcutdir", str(STORIES), "-W", "error"]
    done = subprocess.run(
        [made, "-m", "pytest", "-q", "-p", "no:cacheprovider", *alone, STORIES / story],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-20_000:]
    [passed] = re.findall(r"^(\d+) passed", done.stdout, re.MULTILINE)
    return int(passed)


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_stories_of_a_framework_pass(framework: str, python: str) -> None:
    assert stories_passed(framework, python, f"{framework.replace('-', '_')}_story.py") > 10


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_tool_of_the_page_works_at_a_live_registry(
    framework: str, python: str, shop: dict[str, str]
) -> None:
    story = json.dumps({"framework": FRAMEWORKS[framework], "told": shop})
    assert stories_passed(framework, python, "live_story.py", AGENTAUTH_STORY=story) == 4
