"""What `verify-log` accepts and refuses, by the table that every verifier of the log must
follow.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from agentauth.cli import main
from agentauth.protocol.log_hashes import CompactTree, canonical_entry_hash, leaf_hash
from agentauth.sdk import verify_log
from agentauth.sdk.tests.log_case import CHECKPOINTS, ENDS, LOG, SIZE, Case
from agentauth.sdk.tests.log_cases import BAD, GOOD
from agentauth.sdk.tests.log_edits import anything
from agentauth.sdk.tests.log_folders import LOG_KEY, ORIGIN, Folder, Key, b64, b64u, jcs, note, pack

SDK = Path(verify_log.__file__).parent


def verdict(folder: Folder) -> dict[str, Any]:
    old = [Path(name) for name in folder.old]
    options = argparse.Namespace(
        folder=folder.path, trusted_keys=folder.key_file, old_checkpoint=old, accept_break=[]
    )
    return verify_log.check(options)


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.name)
def test_AU_33_a_good_folder_is_shown_to_be_good(case: Case, tmp_path: Path) -> None:
    folder = case.make(tmp_path / "log")
    answer = verdict(folder)
    assert answer["ok"], answer
    size = answer["tree_size"]
    assert answer["root_hash"] == b64(LOG.tree(0, size))
    assert (answer["events"], answer["first_bad"], answer["problem"]) == (size, None, None)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.name)
def test_AU_33_a_bad_folder_is_refused_and_the_place_is_named(case: Case, tmp_path: Path) -> None:
    folder = case.make(tmp_path / "log")
    answer = verdict(folder)
    assert not answer["ok"]
    place = case.place.replace("kept", str(folder.old[-1])) if folder.old else case.place
    assert answer["problem"].startswith(f"{place}"), answer
    if case.leaf is not None:
        assert answer["first_bad"] == case.leaf, answer


@pytest.mark.parametrize("name", ["verify_log", "verify_log_proof"])
def test_AU_33_verifier_is_one_short_file_needing_only_cryptography(name: str) -> None:
    source = (SDK / f"{name}.py").read_text()
    assert len(source.splitlines()) <= 400
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add("." * node.level + (node.module or ""))
    beside = {".", "verify_log"} if name == "verify_log_proof" else set()
    strange = {each for each in imported if each.partition(".")[0] not in sys.stdlib_module_names}
    assert strange - beside <= {
        "cryptography.exceptions",
        "cryptography.hazmat.primitives.asymmetric.ed25519",
    }
    # Nothing that opens connections, runs programs or loads code from elsewhere.
    assert not imported & {
        "socket",
        "ssl",
        "urllib",
        "http",
        "subprocess",
        "importlib",
        "ctypes",
        "os",
    }


@pytest.fixture
def scripts(tmp_path: Path) -> Path:
    """The two files alone, in a folder of their own."""
    target = tmp_path / "scripts"
    target.mkdir()
    for name in ("verify_log.py", "verify_log_proof.py"):
        shutil.copy(SDK / name, target)
    return target


def script(path: Path, *arguments: str) -> tuple[int, str, set[str]]:
    """Run it far from our packages: exit code, output, and the packages that were imported."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    command = [sys.executable, "-X", "importtime", str(path), *arguments]
    done = subprocess.run(
        command, cwd=path.parent, env=env, capture_output=True, text=True, check=False
    )
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()
    }
    return done.returncode, done.stdout, imported


def test_AU_33_verifiers_run_as_plain_scripts_without_django(scripts: Path, tmp_path: Path) -> None:
    folder = GOOD[1].make(tmp_path / "log")
    keys = ("--trusted-keys", str(folder.key_file))
    code, out, imported = script(scripts / "verify_log.py", str(folder.path), *keys)
    assert (code, json.loads(out)) == (0, verdict(folder))
    assert "cryptography" in imported
    assert not imported & {"django", "agentauth", "audit", "httpx"}
    folder.remove(f"segments/{8:020}.json")
    folder.keep(LOG.note(9))
    code, out, _ = script(
        scripts / "verify_log.py", str(folder.path), *keys, "--old-checkpoint", folder.old[0]
    )
    assert (code, json.loads(out)) == (1, verdict(folder))
    proof = folder.write("proof", json.dumps(LOG.inclusion(3, 9)))
    note = folder.write("note", LOG.note(9))
    given = ("--inclusion", str(proof), "--checkpoint", str(note))
    code, out, imported = script(scripts / "verify_log_proof.py", *keys, *given)
    assert (code, json.loads(out)["ok"]) == (0, True)
    assert not imported & {"django", "agentauth", "audit", "httpx"}


@pytest.mark.parametrize(
    "keys",
    [
        "",
        "# none\n",
        "x",
        LOG_KEY.vkey.replace("+", " "),
        LOG_KEY.vkey[:-1],
        LOG_KEY.vkey + " ",
        LOG_KEY.vkey.replace("log", "lag", 1),
        LOG_KEY.vkey.replace(LOG_KEY.id.hex(), LOG_KEY.id.hex().upper()),
        Key("log", ORIGIN, 2).vkey,
        LOG_KEY.vkey + "\n" + "x",
    ],
)
def test_keys_that_are_none_are_a_wrong_use(
    keys: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = GOOD[0].make(tmp_path / "log")
    folder.keys = [keys]
    monkeypatch.setattr(
        "sys.argv", ["verify_log.py", str(folder.path), "--trusted-keys", str(folder.key_file)]
    )
    with pytest.raises(SystemExit) as ended:
        verify_log.main()
    assert ended.value.code == 2


def test_the_sdk_s_command_line_checks_logs_and_proofs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = GOOD[1].make(tmp_path / "log")
    keys = ("--trusted-keys", str(folder.key_file), "--json")

    def said(*arguments: str) -> tuple[int, Any]:
        code = main([*arguments, *keys])
        return code, json.loads(capsys.readouterr().out)

    assert said("verify-log", str(folder.path)) == (0, verdict(folder))
    folder.keep(LOG.note(14))
    code, answer = said("verify-log", str(folder.path), "--old-checkpoint", folder.old[0])
    assert (code, answer["first_bad"]) == (1, 12)
    proof = folder.write("proof", json.dumps(LOG.inclusion(3, 9)))
    note = folder.write("note", LOG.note(9))
    code, answer = said("verify-proof", "--inclusion", str(proof), "--checkpoint", str(note))
    assert (code, answer["ok"], answer["tree_size"]) == (0, True, 9)
    code, answer = said("verify-proof", "--inclusion", str(proof))
    assert (code, answer["error"]) == (1, "invalid_request")
    folder.keys = ["x"]
    assert folder.key_file
    code, answer = said("verify-log", str(folder.path))
    assert (code, answer["error"]) == (1, "invalid_request")


@pytest.mark.parametrize("kind", ["export", "archive"])
def test_AU_33_whatever_is_edited_is_refused_or_means_the_same(kind: str, tmp_path: Path) -> None:
    chance = random.Random(kind)
    for number in range(150):
        folder = Folder(tmp_path / str(number), LOG)
        if kind == "export":
            folder.export(SIZE)
        else:
            folder.archive(ENDS, CHECKPOINTS)
        folder.keep(LOG.note(SIZE))
        told = anything(folder, chance)
        answer = verdict(folder)
        if answer["ok"]:
            assert told.harmless, (told, answer)
            assert (answer["tree_size"], answer["root_hash"]) == (SIZE, b64(LOG.tree(0, SIZE)))


def test_AU_28_a_long_log_takes_no_more_memory_than_a_short_one(tmp_path: Path) -> None:
    # benchmarks/verify_log.py measures a million; no test measures time.
    tree, lines, salt = CompactTree(), [], bytes(32)
    for index in range(20_000):
        event = jcs({"id": index, "data": "x" * 500})
        tree.append(leaf_hash(canonical_entry_hash(event, salt)))
        lines.append(f"{index} {b64u(salt)} ".encode() + event + b"\n")
    folder = Folder(tmp_path / "log", LOG)
    folder.write("lines.gz", pack(b"".join(lines)))
    folder.write("checkpoint", note(f"{ORIGIN}\n{tree.size}\n{b64(tree.root())}\n", LOG_KEY))
    tracemalloc.start()
    try:
        answer = verdict(folder)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (answer["ok"], answer["events"], answer["root_hash"]) == (True, 20_000, b64(tree.root()))
    assert peak < 4 << 20 < sum(map(len, lines)) // 2


def test_AU_28_memory_does_not_grow_with_what_is_packed(tmp_path: Path) -> None:
    # A line compressed a thousandfold: read no further than the longest line allowed.
    folder = Folder(tmp_path / "log", LOG)
    folder.export(SIZE)
    folder.write("lines.gz", pack(b"0 " + b"A" * (1 << 26)))
    tracemalloc.start()
    try:
        assert not verdict(folder)["ok"]
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
