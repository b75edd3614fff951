"""Each code block of the pages for developers is run by a test that names its page.

The tutorials are run in full (tests/flows/test_tutorials.py).
"""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# By page, how many blocks of each language a test runs, and where. Text is what the block before
# it prints; a block without a language is a file of settings.
RUN: dict[str, dict[str, tuple[int, str]]] = {
    "agent-frameworks.md": {"python": (1, "tests/frameworks/live_stage.py")},
    "archive-queries.md": {"sql": (16, "approvals/tests/test_archive_queries.py")},
    "cli.md": {
        "sh": (2, "tests/flows/test_tutorials.py"),
        "text": (1, "tests/flows/test_tutorials.py"),
    },
    "forward-auth.md": {"sh": (1, "tests/flows/test_forward_auth.py")},
    "integrations.md": {
        "": (1, "agentauth/integrations/tests/test_page.py"),
        "sh": (1, "agentauth/integrations/tests/test_page.py"),
        "python": (11, "agentauth/integrations/tests/test_page.py"),
    },
    "mcp.md": {
        "json": (1, "agentauth/mcp/tests/test_options.py"),
        "python": (2, "tests/flows/test_mcp_protect.py"),
    },
    "sdk.md": {"python": (5, "tests/flows/test_agent_client.py")},
}


def fences(page: str) -> list[str]:
    """The language of each block of a page, "" for none."""
    lines = re.findall(r"^ *```(.*)$", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert len(lines) % 2 == 0
    return [line.split(" ")[0] for line in lines[::2]]


@pytest.mark.parametrize("page", RUN)
def test_every_block_of_a_page_is_run_by_a_test(page: str) -> None:
    """Who adds a block adds it to the test that runs the page, then here."""
    assert Counter(fences(page)) == {name: number for name, (number, _) in RUN[page].items()}
    for _, file in RUN[page].values():
        assert page in (ROOT / file).read_text()
