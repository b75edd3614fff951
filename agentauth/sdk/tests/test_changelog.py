"""The SDK has what the changelog says."""

import re
from pathlib import Path

from agentauth import sdk

ROOT = Path(__file__).resolve().parents[3]
CLIENTS = (sdk.AgentAuthClient, sdk.VerifierClient, sdk.LogClient)


def test_every_name_that_the_changelog_gives_the_sdk_exists() -> None:
    items = re.split(r"^- ", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    named = {
        name
        for item in items
        if "SDK" in item
        for name in re.findall(r"`([a-z]+(?:_[a-z]+)+|[A-Z]\w+(?:Error|Client))`", item)
    }
    assert {"renew_manifest", "rotate_key", "ask_again", "NoGrantError"} <= named
    named -= {path.stem for path in ROOT.glob("*/management/commands/*.py")}
    assert {
        name for name in named if not any(hasattr(place, name) for place in (sdk, *CLIENTS))
    } == set()
