"""Where the shared security files and their vectors are: external data, never copied here."""

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def named_folder() -> Path | None:
    """The folder of shared files, or None if there is none.

    AGENTAUTH_SHARED names it; an empty value means none. If the variable is unset, it is `shared`
    beside the checkout, if that exists. Raises FileNotFoundError for a named folder that does not
    exist: a wrong path must not look like a machine without the files.
    """
    named = os.environ.get("AGENTAUTH_SHARED")
    folder = Path(named) if named else ROOT.parent / "shared"
    if named is None:
        return folder / "security" if (folder / "security").is_dir() else None
    if named and not (folder / "security").is_dir():
        raise FileNotFoundError(
            f"AGENTAUTH_SHARED names {folder}, which has no folder `security`. Unset it or "
            "correct it."
        )
    return folder / "security" if named else None


SECURITY = named_folder()
ABSENT = (
    "the shared security files (AGENTAUTH_SHARED, or `shared` beside the checkout) are not there"
)


@cache
def load(name: str) -> Any:
    """A vector file's content. Callers are marked `vectors`, which conftest.py skips without the
    files.
    """
    assert SECURITY, ABSENT
    return json.loads((SECURITY / "vectors" / f"{name}.json").read_text("utf-8"))


def files() -> list[str]:
    """The names of all vector files, sorted."""
    assert SECURITY, ABSENT
    return sorted(path.stem for path in (SECURITY / "vectors").glob("*.json"))


def cases(name: str) -> list[Any]:
    """One row per case of an own_* file, named by its id; one skipped row if the file is absent."""
    if not SECURITY:
        return [pytest.param(None, id="absent")]
    return [pytest.param(case, id=case["id"]) for case in load(name)["cases"]]


def b(text: str) -> bytes:
    return bytes.fromhex(text)
