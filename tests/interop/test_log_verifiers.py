"""The JavaScript and Python log verifiers give the same verdict on every folder and proof."""

import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agentauth.sdk.tests import log_cases, proof_cases
from agentauth.sdk.tests.log_case import CHECKPOINTS, ENDS, LOG, SIZE, Case
from agentauth.sdk.tests.log_edits import anything
from agentauth.sdk.tests.log_folders import Folder, b64
from agentauth.sdk.tests.test_verify_log import verdict as log_verdict
from agentauth.sdk.tests.test_verify_log_proof import verdict as proof_verdict
from tests.interop.verifying import HERE, Ask, Verdict, asking

pytestmark = pytest.mark.node
EDITS = 400


@pytest.fixture(scope="module")
def javascript() -> Iterator[Ask]:
    """One process for all questions."""
    with asking() as ask:
        yield ask


def arguments(folder: Folder) -> list[str]:
    kept = [part for name in folder.old for part in ("--old-checkpoint", name)]
    return [str(folder.path), "--trusted-keys", str(folder.key_file), *kept]


def comparable(answer: Verdict) -> Verdict:
    """The position of the problem without its wording, which differs between them."""
    return answer | {"problem": answer["problem"] and answer["problem"].partition(": ")[0]}


@pytest.mark.parametrize("case", [*log_cases.GOOD, *log_cases.BAD], ids=lambda case: case.name)
def test_AU_33_two_verifiers_say_the_same_of_a_log(
    case: Case, tmp_path: Path, javascript: Ask
) -> None:
    folder = case.make(tmp_path / "log")
    said, expected = javascript(*arguments(folder)), log_verdict(folder)
    if case in log_cases.BAD_GZIP:
        # How far it was read before the error may differ.
        said["first_bad"] = expected["first_bad"] = None
    assert comparable(said) == comparable(expected)
    assert said["ok"] is (case in log_cases.GOOD)


@pytest.mark.parametrize("case", [*proof_cases.GOOD, *proof_cases.BAD], ids=lambda case: case.name)
def test_AU_33_two_verifiers_say_the_same_of_a_proof(
    case: proof_cases.ProofCase, tmp_path: Path, javascript: Ask
) -> None:
    expected = proof_verdict(tmp_path, case.files)
    options = [part for name in case.files for part in (f"--{name}", str(tmp_path / name))]
    said = javascript("--trusted-keys", str(tmp_path / "keys"), *options)
    assert comparable(said) == comparable(expected)
    assert said["ok"] is (case in proof_cases.GOOD)


@pytest.mark.parametrize("kind", ["export", "archive"])
@pytest.mark.parametrize("seed", range(4))
def test_AU_33_whatever_is_edited_both_refuse_it_or_it_means_the_same(
    kind: str, seed: int, tmp_path: Path, javascript: Ask
) -> None:
    pristine = Folder(tmp_path / "pristine", LOG)
    if kind == "export":
        pristine.export(SIZE)
        pristine.write(f"checkpoints/{7:020}", LOG.note(7))
    else:
        pristine.archive(ENDS, CHECKPOINTS)
    chance = random.Random(f"{kind} {seed}")
    harmless = 0
    for number in range(EDITS // 8):
        folder = Folder(tmp_path / str(number), LOG)
        shutil.copytree(pristine.path, folder.path, dirs_exist_ok=True)
        folder.keep(LOG.note(SIZE))
        told = anything(folder, chance)
        said, expected = javascript(*arguments(folder)), log_verdict(folder)
        assert said["ok"] == expected["ok"], (told, said, expected)
        if said["ok"]:
            harmless += 1
            assert told.harmless, (told, said)
            assert comparable(said) == comparable(expected)
            assert (said["tree_size"], said["root_hash"]) == (SIZE, b64(LOG.tree(0, SIZE)))
    assert harmless < EDITS // 8 // 3


def test_the_command_line_answers_with_its_exit_code(tmp_path: Path) -> None:
    folder = log_cases.GOOD[0].make(tmp_path / "log")
    command = ["node", str(HERE / "verify_log.mjs")]

    def run(*given: str) -> tuple[int, str]:
        done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout

    code, out = run(*arguments(folder))
    assert (code, json.loads(out)["ok"]) == (0, True)
    folder.remove("checkpoint")
    code, out = run(*arguments(folder))
    assert (code, json.loads(out)["ok"]) == (1, False)
    folder.keys[:] = ["no key"]
    assert run(*arguments(folder)) == (2, "")
    assert run(str(folder.path)) == (2, "")
    assert run("--trusted-keys", str(folder.key_file), "--first", "x") == (2, "")
