"""A log that continued after a restore:

`verify-log` shows the break, and accepts its record in only one form.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentauth.cli import main
from agentauth.protocol.untrusted_text import printable
from agentauth.sdk import verify_log
from agentauth.sdk.tests.log_case import LOG, REWRITTEN
from agentauth.sdk.tests.log_folders import LOG_KEY, ORIGIN, Folder, Key, MadeLog, b64, jcs

SCRIPT = verify_log.__file__
NAME, AT, SIZE = "20261129180000", 3, 10
NEXT = f"{ORIGIN}/{NAME}"
NEXT_LOG = MadeLog(key=Key("after the restore", NEXT), origin=NEXT)
PLACE = f"breaks/{NAME}.json"
ROOT = LOG.tree(0, AT)
RECORD: dict[str, Any] = {
    "version": 1,
    "name": NAME,
    "origin": NEXT,
    "previous": "",
    "previous_origin": ORIGIN,
    "size": AT,
    "root": b64(ROOT),
    "signed": AT,
    "archived": AT,
    "lost": [],
}


def broken_log(
    path: Path, record: dict[str, Any] | str | bytes = RECORD, *, name: str = NAME
) -> Folder:
    """An archive whose log broke after 3 events and continued to 10 under another name and key."""
    folder = Folder(path, LOG)
    folder.segment(0, AT)
    folder.log = NEXT_LOG
    folder.segment(AT, SIZE, origin=NEXT)
    moved = f"segments/{AT:020}.json"
    folder.write(f"log-{NAME}/{moved}", folder.read(moved))
    folder.remove(moved)
    folder.write(f"breaks/{name}.json", jcs(record) if isinstance(record, dict) else record)
    folder.keys = [LOG_KEY.vkey, NEXT_LOG.key.vkey]
    return folder


def accepting(size: object = AT) -> str:
    return f"{NAME}:{size}:{ROOT.hex()}"


def verdict(folder: Folder, *accepted: str) -> dict[str, Any]:
    old = [Path(name) for name in folder.old]
    keys = folder.key_file
    options = argparse.Namespace(
        folder=folder.path, trusted_keys=keys, old_checkpoint=old, accept_break=accepted
    )
    return verify_log.check(options)


def test_AU_33_a_break_is_a_problem_unless_exactly_it_is_accepted(tmp_path: Path) -> None:
    folder = broken_log(tmp_path / "log")
    for accepted in ([], [accepting(4)], [accepting() + "0"]):
        answer = verdict(folder, *accepted)
        assert (answer["ok"], answer["breaks"]) == (False, [accepting()])
        assert answer["problem"].startswith(f"{PLACE}: the log breaks after 3 events")
        assert answer["problem"].endswith(f"--accept-break {accepting()}")
    answer = verdict(folder, accepting())
    assert (answer["ok"], answer["events"], answer["breaks"]) == (True, SIZE, [accepting()])


def test_AU_33_a_kept_checkpoint_is_compared_across_a_break(tmp_path: Path) -> None:
    folder = broken_log(tmp_path / "log")
    folder.keep(LOG.note(5))
    assert verdict(folder, accepting())["ok"]
    folder.keep(REWRITTEN.note(5))
    answer = verdict(folder, accepting())
    assert (answer["ok"], answer["problem"].partition(": ")[0]) == (False, folder.old[1])


@pytest.mark.parametrize("size", [3.5, -0.5, -1])
def test_AU_33_no_record_of_a_break_hides_a_kept_checkpoint(size: float, tmp_path: Path) -> None:
    folder = broken_log(tmp_path / "log", RECORD | {"size": size})
    folder.keep(REWRITTEN.note(5))
    answer = verdict(folder, accepting(size))
    assert (answer["ok"], answer["problem"]) == (False, f"{PLACE}: is not a record of a break")


@pytest.mark.parametrize(("size", "met_at"), [(-1, 0), (2.5, 3)])
def test_AU_33_a_checkpoint_that_is_passed_over_is_a_problem(
    size: Any, met_at: int, tmp_path: Path
) -> None:
    folder = Folder(tmp_path / "log", LOG)
    folder.export(SIZE)
    trust = verify_log.Trust(LOG_KEY.vkey)
    log = verify_log.Log(folder.path, trust)
    log.marks = [verify_log.Checkpoint("odd", size, LOG.tree(0, met_at))]
    with pytest.raises(verify_log.ProblemError, match="odd"):
        log._add("lines.gz", trust.checkpoint(LOG.note(SIZE).encode(), "checkpoint"))


ODD: list[Any] = [
    None,
    True,
    1.0,
    float("inf"),
    float("nan"),
    -1,
    2**53,
    "",
    "3",
    "\x1b[31m",
    [3],
    [[]],
    {},
]
OTHERS = [
    (member, value)
    for member in RECORD
    for value in ODD
    if value != RECORD[member] or value is True
]
WRONG: list[tuple[str, Any]] = [
    *OTHERS,
    ("lost", [NAME]),
    ("lost", ["20261129180001"]),
    ("lost", ["20261129170000", "20261129160000"]),
    ("lost", ["20261129170000"] * 2),
    ("lost", ["1"]),
    ("lost", [1]),
    ("lost", "20261129170000"),
    ("previous", NAME),
    ("previous", "20261129180001"),
    ("origin", f"{ORIGIN}/20261129180001"),
    ("origin", NAME),
    ("previous_origin", "other.example/v1/audit"),
    ("root", b64(ROOT[:31])),
    ("root", b64(ROOT).rstrip("=")),
    ("version", 2),
    ("more", 1),
]


@pytest.mark.parametrize(("member", "value"), WRONG, ids=map(repr, WRONG))
def test_AU_33_a_record_of_a_break_has_exact_members_and_types(
    member: str, value: Any, tmp_path: Path
) -> None:
    folder = broken_log(tmp_path / "log", RECORD | {member: value})
    answer = verdict(folder, accepting(), accepting(value))
    assert (answer["ok"], answer["problem"]) == (False, f"{PLACE}: is not a record of a break")


@pytest.mark.parametrize("member", RECORD)
def test_AU_33_a_record_of_a_break_lacks_no_member(member: str, tmp_path: Path) -> None:
    record = {name: value for name, value in RECORD.items() if name != member}
    answer = verdict(broken_log(tmp_path / "log", record), accepting())
    assert (answer["ok"], answer["problem"]) == (False, f"{PLACE}: is not a record of a break")


TEXT = jcs(RECORD).decode()


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(RECORD),
        TEXT + "\n",
        TEXT[:-1] + ',"size":3}',
        TEXT.replace('"size":3', '"size":1e400'),
        TEXT.replace('"size":3', '"size":Infinity'),
        TEXT.replace('"size":3', '"size":3e0'),
        TEXT.replace('"size":3', '"size":-0'),
        TEXT.replace('"size":3', '"size":' + "9" * 5000),
        TEXT.replace('"size":3', '"size":' + "[" * 900 + "]" * 900),
        TEXT.replace("log.example", "\\ud800"),
        TEXT.replace(NAME, "\\ud800"),
        TEXT.replace(NAME, "20261129180001"),
        "[]",
        "null",
        "x",
        "[" * 100_000,
        b"\xff",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_AU_33_a_record_of_a_break_has_one_spelling(text: str | bytes, tmp_path: Path) -> None:
    answer = verdict(broken_log(tmp_path / "log", text), accepting())
    assert (answer["ok"], answer["problem"]) == (False, f"{PLACE}: is not a record of a break")


@pytest.mark.parametrize(
    ("name", "base"), [("1", ORIGIN), (NAME, "log.example"), (NAME, "log.example/v1")]
)
def test_AU_33_a_record_of_a_break_is_of_a_log_by_its_form(
    name: str, base: str, tmp_path: Path
) -> None:
    record = RECORD | {"name": name, "origin": f"{base}/{name}", "previous_origin": base}
    answer = verdict(broken_log(tmp_path / "log", record, name=name), accepting())
    assert answer["problem"] == f"breaks/{name}.json: is not a record of a break"


def test_AU_33_break_record_must_be_stored_under_its_name(tmp_path: Path) -> None:
    answer = verdict(broken_log(tmp_path / "log", name="20261129180001"), accepting())
    assert answer["problem"] == "breaks/20261129180001.json: is not a record of a break"
    record = RECORD | {"previous": "20261129170000", "previous_origin": f"{ORIGIN}/20261129170000"}
    answer = verdict(broken_log(tmp_path / "another", record), accepting())
    assert answer["problem"] == "breaks: has no record of 20261129170000"


def said(*arguments: str) -> tuple[int, str, str]:
    """The plain script's exit code, stdout and stderr."""
    done = subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def test_AU_33_a_malformed_archive_is_one_line_and_exit_code_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = broken_log(tmp_path / "record", RECORD | {"origin": 5})
    manifest = broken_log(tmp_path / "manifest")
    first = f"segments/{0:020}.json"
    digest = manifest.manifest(0)["lines"]["sha256"].encode()
    manifest.edit(first, lambda raw: raw.replace(digest, rb"\ud800"))
    for folder, problem in (
        (record, f"{PLACE}: is not a record of a break"),
        (manifest, f"{first}: is not a manifest"),
    ):
        arguments = [
            str(folder.path),
            "--trusted-keys",
            str(folder.key_file),
            "--accept-break",
            accepting(),
        ]
        code, out, error = said(*arguments)
        assert (code, json.loads(out)["problem"], error) == (1, problem, "")
        assert main(["verify-log", *arguments, "--json"]) == 1
        assert json.loads(capsys.readouterr().out)["problem"] == problem


@pytest.mark.parametrize("name", ["verify_log.py", "verify_log_proof.py"])
def test_keys_that_are_none_are_one_line_that_a_terminal_can_show(
    name: str, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("\x1b[31mred\u202e\x07+00000000+" + "A" * 44)
    given = (
        ["--inclusion", str(keys), "--checkpoint", str(keys)]
        if "proof" in name
        else [str(tmp_path)]
    )
    command = [
        sys.executable,
        str(Path(SCRIPT).with_name(name)),
        *given,
        "--trusted-keys",
        str(keys),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    shown = done.stderr.removesuffix("\n")
    assert shown == printable(shown)
    assert shown.startswith(f"{name}: error: Not an Ed25519 verifier key: ")
