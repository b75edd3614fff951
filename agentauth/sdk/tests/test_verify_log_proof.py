"""What `verify-proof` accepts and refuses: every leaf of small trees, every pair of sizes, and each
part exchanged.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agentauth.sdk import verify_log_proof
from agentauth.sdk.tests.log_folders import LOG_KEY, b64
from agentauth.sdk.tests.proof_cases import BAD, GOOD, LOG, ProofCase

NAMES = ("inclusion", "checkpoint", "bundle", "event", "consistency", "first", "second")


def verdict(path: Path, files: dict[str, str]) -> dict[str, Any]:
    keys = path / "keys"
    keys.write_text(LOG_KEY.vkey)
    options: dict[str, Any] = dict.fromkeys(NAMES)
    for name, text in files.items():
        options[name] = path / name
        options[name].write_text(text)
    return verify_log_proof.check(argparse.Namespace(trusted_keys=keys, **options))


@pytest.mark.parametrize("size", range(1, 15))
def test_AU_33_every_leaf_is_proved_by_its_path_alone(size: int, tmp_path: Path) -> None:
    for index in range(size):
        proof = LOG.inclusion(index, size)
        files = {"inclusion": json.dumps(proof), "checkpoint": LOG.note(size)}
        answer = verdict(tmp_path, files)
        assert answer["ok"], answer
        assert (answer["tree_size"], answer["root_hash"]) == (size, b64(LOG.tree(0, size)))
        for other in {*range(-1, size + 1)} - {index}:
            moved = json.dumps(proof | {"leaf_index": other})
            assert not verdict(tmp_path, files | {"inclusion": moved})["ok"], (index, other)
        bundled = {"bundle": LOG.bundle(index, size), "event": json.dumps(LOG.shown(index))}
        assert verdict(tmp_path, bundled)["ok"]


@pytest.mark.parametrize("second", range(1, 15))
def test_AU_33_every_pair_of_sizes_is_proved_by_its_path_alone(second: int, tmp_path: Path) -> None:
    for first in range(1, second + 1):
        proof = LOG.consistency(first, second)
        files = {
            "first": LOG.note(first),
            "second": LOG.note(second),
            "consistency": json.dumps(proof),
        }
        answer = verdict(tmp_path, files)
        assert answer["ok"], answer
        assert answer["tree_size"] == second
        path = proof["consistency_path"]
        changes: list[Callable[[list[str]], list[str]]] = [
            lambda found: found[1:] or ["x"],
            lambda found: [*found, b64(bytes(32))],
            lambda found: [b64(bytes(32)), *found],
            lambda found: found[::-1] if len(set(found)) > 1 else ["x"],
        ]
        for change in changes:
            spoilt = json.dumps(proof | {"consistency_path": change(path)})
            assert not verdict(tmp_path, files | {"consistency": spoilt})["ok"], (first, second)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_AU_33_a_good_proof_is_accepted(case: ProofCase, tmp_path: Path) -> None:
    answer = verdict(tmp_path, case.files)
    assert answer["ok"], answer
    assert answer["events"] == int("event" in case.files)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_AU_33_a_bad_proof_is_refused_and_its_file_named(case: ProofCase, tmp_path: Path) -> None:
    answer = verdict(tmp_path, case.files)
    assert answer["problem"]
    assert Path(answer["problem"].partition(": ")[0]).name == case.place, answer
    assert (answer["ok"], answer["tree_size"], answer["root_hash"], answer["events"]) == (
        False,
        0,
        None,
        0,
    )


@pytest.mark.parametrize(
    "names",
    [
        [],
        ["inclusion"],
        ["checkpoint"],
        ["bundle"],
        ["event"],
        ["first", "second"],
        ["consistency", "first"],
    ],
)
def test_incompatible_proof_arguments_are_refused(names: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Give"):
        verdict(tmp_path, dict.fromkeys(names, "{}"))
