"""Where the shared vector files are, and what stands in them; they are other people's data and never copied here."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("AGENTAUTH_SHARED", ROOT.parent / "shared")) / "security" / "vectors"
PRESENT = FOLDER.is_dir()
REQUIRED = os.environ.get("REQUIRE_ALL") == "1"
ABSENT = f"the shared vector files are not at {FOLDER.name} beside the checkout"


@cache
def load(name: str) -> Any:
    """The content of a vector file. Absent files skip, or fail where everything is required."""
    if not PRESENT:
        (pytest.fail if REQUIRED else pytest.skip)(ABSENT)
    return json.loads((FOLDER / f"{name}.json").read_text("utf-8"))


def cases(name: str) -> list[Any]:
    """One row per case of an own_* file, named by its id; one row that skips or fails where the file is absent."""
    if not PRESENT:
        return [pytest.param(None, id="absent")]
    return [pytest.param(case, id=case["id"]) for case in load(name)["cases"]]


def b(text: str) -> bytes:
    return bytes.fromhex(text)
