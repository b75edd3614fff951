"""The witness as a process: its commands and files, and kills between what it stores and what it
answers.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from agentauth.cli import main
from agentauth.protocol.keys import PrivateKey
from agentauth.protocol.signed_notes import (
    SignatureType,
    Verifier,
    parse_note,
    parse_vkey,
    verify_signatures,
)
from agentauth.sdk.errors import KeyFileError, WitnessStateError
from agentauth.sdk.tests.witness_cast import NAME, ORIGIN, Log
from agentauth.sdk.witness.key_and_logs import read_logs, read_witness_key


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = main([*arguments, "--json"])
    return code, json.loads(capsys.readouterr().out)


@pytest.fixture
def files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, str]:
    """A new witness's key and state, and its vkey."""
    made = {"key": str(tmp_path / "key.json"), "state": str(tmp_path / "state.sqlite")}
    code, answer = command(
        capsys, "witness-keygen", NAME, "--key", made["key"], "--state", made["state"]
    )
    assert (code, answer) == (0, made | {"vkey": answer["vkey"]})
    return answer


@pytest.fixture
def log(tmp_path: Path) -> Log:
    log = Log()
    (tmp_path / "logs").write_text(f"# the log\n\n{log.key.vkey}\n")
    return log


@contextmanager
def started(files: dict[str, str], before: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`agentauth witness`, patched by `before`: the process, and
    its address.
    """
    logs = str(Path(files["key"]).parent / "logs")
    arguments = [
        "witness",
        "--key",
        files["key"],
        "--state",
        files["state"],
        "--logs",
        logs,
        "--port",
        "0",
    ]
    program = f"import sys\n{before}\nfrom agentauth.cli import main\nsys.exit(main({arguments!r}))"
    with subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        try:
            line = process.stderr.readline()
            vkey, _, url = line.strip().partition(" listens on ")
            assert vkey == files["vkey"], line
            yield process, url
        finally:
            process.kill()


@contextmanager
def running(files: dict[str, str], before: str = "") -> Iterator[httpx.Client]:
    with started(files, before) as (_, url), httpx.Client(base_url=url, timeout=30) as client:
        yield client


def seen(files: dict[str, str], note: str, line: str) -> bool:
    return len(verify_signatures(parse_note(note + line), [parse_vkey(files["vkey"])])) == 1


def test_the_command_serves_what_keygen_made(files: dict[str, str], log: Log) -> None:
    for old, size in [(0, 5), (5, 9)]:
        with running(files) as client:
            answer = client.post("/add-checkpoint", content=log.request(old, size))
            assert answer.status_code == 200
            assert seen(files, log.note(size), answer.text)


KILL = "import os, signal\nkill = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
BEFORE_THE_ANSWER = f"""
{KILL}
from agentauth.sdk.witness.latest_checkpoints import State
swap = State.swap
State.swap = lambda *arguments: (swap(*arguments), kill())
"""
BEFORE_THE_COMMIT = f"""
{KILL}
from agentauth.sdk.witness import cosigning
cosigning.format_note = kill
"""


def test_killed_between_state_and_answer_it_says_the_same_when_asked_again(
    files: dict[str, str], log: Log
) -> None:
    with running(files) as client:
        assert client.post("/add-checkpoint", content=log.request(0, 3)).status_code == 200
    with running(files, BEFORE_THE_ANSWER) as client, pytest.raises(httpx.TransportError):
        client.post("/add-checkpoint", content=log.request(3, 5))
    with running(files) as client:
        # It is bound to the tree whose cosignature was lost: it accepts no other, and the log gets
        # its line.
        assert (
            client.post("/add-checkpoint", content=log.other("x").request(3, 5)).status_code == 409
        )
        again = client.post("/add-checkpoint", content=log.request(3, 5))
        assert (again.status_code, again.text) == (409, "5\n")
        assert (
            client.post("/add-checkpoint", content=log.other("x").request(5, 5)).status_code == 422
        )
        answer = client.post("/add-checkpoint", content=log.request(5, 5))
        assert answer.status_code == 200
        assert seen(files, log.note(5), answer.text)


def test_killed_before_the_state_is_kept_it_has_said_and_seen_nothing(
    files: dict[str, str], log: Log
) -> None:
    with running(files, BEFORE_THE_COMMIT) as client, pytest.raises(httpx.TransportError):
        client.post("/add-checkpoint", content=log.request(0, 5))
    with running(files) as client:
        answer = client.post("/add-checkpoint", content=log.other("x").request(0, 5))
        assert answer.status_code == 200


# Tests that run in the background of a shell ignore interrupts, and so do their children.
AS_IN_FRONT = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def test_it_ends_when_it_is_interrupted(files: dict[str, str], log: Log) -> None:
    with started(files, AS_IN_FRONT) as (process, _):
        assert process.stderr is not None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130
        assert "Traceback" not in process.stderr.read()


def test_keygen_makes_no_second_key_and_takes_no_state_that_is_there(
    files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = Path(files["key"]).read_bytes()
    state = Path(files["state"]).read_bytes()
    for key, kept, code in [
        (files["key"], tmp_path / "new", "key_file"),
        (tmp_path / "new", files["state"], "witness_state"),
    ]:
        answer = command(capsys, "witness-keygen", NAME, "--key", str(key), "--state", str(kept))
        assert (answer[0], answer[1]["error"]) == (1, code)
    assert (Path(files["key"]).read_bytes(), Path(files["state"]).read_bytes()) == (before, state)
    assert not (tmp_path / "new").exists()
    answer = command(
        capsys,
        "witness-keygen",
        "a b",
        "--key",
        str(tmp_path / "new"),
        "--state",
        str(tmp_path / "n2"),
    )
    assert (answer[0], answer[1]["error"]) == (1, "invalid_note")


def test_a_key_is_its_owners_alone_and_belongs_to_its_state(
    files: dict[str, str], log: Log, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, signer = read_witness_key(Path(files["key"]))
    assert Verifier(name, signer.public, SignatureType.COSIGNATURE).vkey == files["vkey"]
    assert Path(files["key"]).stat().st_mode & 0o777 == 0o600
    assert Path(files["state"]).stat().st_mode & 0o777 == 0o600
    other = {"key": str(tmp_path / "other"), "state": str(tmp_path / "other state")}
    assert main(["witness-keygen", "other", "--key", other["key"], "--state", other["state"]]) == 0
    capsys.readouterr()
    serve = ["witness", "--logs", str(tmp_path / "logs"), "--port", "0"]
    refused = [
        ([*serve, "--key", other["key"], "--state", files["state"]], "witness_state"),
        ([*serve, "--key", files["key"], "--state", str(tmp_path / "none")], "witness_state"),
        ([*serve, "--key", str(tmp_path / "none"), "--state", files["state"]], "key_file"),
        (
            [*serve, "--key", files["key"], "--state", files["state"], "--port", "70000"],
            "witness_state",
        ),
        (
            [*serve, "--key", files["key"], "--state", files["state"], "--logs", "none"],
            "invalid_request",
        ),
    ]
    for arguments, code in refused:
        assert command(capsys, *arguments)[1]["error"] == code
    Path(files["key"]).chmod(0o640)
    assert (
        command(capsys, *serve, "--key", files["key"], "--state", files["state"])[1]["error"]
        == "key_file"
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        "[]",
        json.dumps({"version": 1, "name": "w", "private_key": "x"}),
        json.dumps(
            {"version": 2, "name": "w", "private_key": PrivateKey.generate().to_pem().decode()}
        ),
        json.dumps(
            {"version": 1, "name": "a b", "private_key": PrivateKey.generate().to_pem().decode()}
        ),
        json.dumps(
            {
                "version": 1,
                "name": "w",
                "private_key": PrivateKey.generate("ES256").to_pem().decode(),
            }
        ),
    ],
)
def test_other_file_is_refused_as_a_witness_key(tmp_path: Path, content: str) -> None:
    path = tmp_path / "key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(KeyFileError) as refused:
        read_witness_key(path)
    assert "PRIVATE" not in str(refused.value)


def test_the_logs_are_read_with_their_origins() -> None:
    one, two = Log(), Log()
    text = f"# a log\n{one.key.vkey}\n\n{two.key.vkey}\n{two.key.vkey} another origin\n"
    assert read_logs(text) == {ORIGIN: [one.key, two.key], "another origin": [two.key]}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "# nothing\n",
        "x\n",
        "{key} \n{key}\n",
        "{key}\n{key}\n",
        "{seeing}\n",
        "{key}\r\n",
        " {key}\n",
        "{key}\t\n",
    ],
)
def test_a_file_of_logs_in_another_form_is_refused(bad: str) -> None:
    log = Log()
    seeing = Verifier("w", log.signer.public, SignatureType.COSIGNATURE)
    with pytest.raises(WitnessStateError):
        read_logs(bad.format(key=log.key.vkey, seeing=seeing.vkey))
