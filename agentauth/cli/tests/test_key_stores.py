"""`--key-store`: the commands with the key in the keyring or the environment."""

import json
import sys
from pathlib import Path

import pytest

from agentauth.cli import main
from agentauth.cli.tests.test_commands import answer
from agentauth.cli.tests.test_doctor import Discovery, examined, found
from agentauth.mcp.__main__ import main as serve_mcp
from agentauth.mcp.__main__ import parser
from agentauth.protocol.keys import PrivateKey
from agentauth.sdk.key_store import EnvironmentStore
from agentauth.sdk.keyring_store import KeyringStore
from agentauth.sdk.tests.fake_registry import SP_ID, URL, FakeRegistry, grant
from agentauth.sdk.tests.test_key_stores import FakeKeyring, ring

__all__ = ["found", "ring"]
Printed = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _no_key_file(agent: FakeRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("AGENTAUTH_KEY_FILE")
    # The lock of the keyring is there, and no key file may appear.
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> str:
    """The key in the environment."""
    pem = PrivateKey.generate().to_pem().decode()
    monkeypatch.setenv("AGENTAUTH_KEY", pem)
    monkeypatch.setenv("AGENTAUTH_KEY_STORE", "env")
    return pem


def key_files(tmp_path: Path) -> list[Path]:
    return [path for path in tmp_path.rglob("*") if path.suffix == ".json"]


def test_a_key_in_the_keyring_is_that_of_every_command(
    agent: FakeRegistry, ring: FakeKeyring, capsys: Printed, tmp_path: Path
) -> None:
    there = ("--key-store", "keyring")
    code, made = answer(capsys, "keygen", *there)
    assert (code, made["key_store"]) == (0, "the keyring fake")
    agent.grants = [grant()]
    assert answer(capsys, "register", "-c", "read:calendar", *there)[0] == 0
    assert answer(capsys, "token", SP_ID, *there) == (0, {"access_token": "token-1"})
    assert {proof.jkt for proof in agent.proofs} == {made["jkt"]}
    code, known = answer(capsys, "whoami", "--offline", *there)
    assert (code, known["jkt"], known["key_store"]) == (0, made["jkt"], "the keyring fake")
    assert key_files(tmp_path) == []


def test_keygen_replaces_no_key_in_the_keyring(ring: FakeKeyring, capsys: Printed) -> None:
    answer(capsys, "keygen", "--key-store", "keyring")
    before = dict(ring.entries)
    code, refused = answer(capsys, "keygen", "--key-store", "keyring")
    assert (code, refused["error"]) == (1, "key_file")
    assert f"Move its entry for {URL} away" in refused["error_description"]
    assert ring.entries == before


def test_the_environment_is_one_agent_for_all_commands(
    agent: FakeRegistry,
    key: str,
    capsys: Printed,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    agent.grants = [grant()]
    code, made = answer(capsys, "register", "-c", "read:calendar")
    assert code == 0
    # What the next command cannot know otherwise; the file of another store has it.
    monkeypatch.setenv("AGENTAUTH_MANIFEST", made["manifest"])
    monkeypatch.setenv("AGENTAUTH_AGENT_ID", made["agent_id"])
    registrations = len(agent.bodies("POST", "/v1/agents"))
    assert answer(capsys, "token", SP_ID) == (0, {"access_token": "token-1"})
    code, known = answer(capsys, "whoami", "--offline")
    assert (known["agent_id"], known["capabilities"]) == (made["agent_id"], ["read:calendar"])
    assert known["key_store"] == "$AGENTAUTH_KEY"
    assert len(agent.bodies("POST", "/v1/agents")) == registrations
    kid = PrivateKey.from_pem(key.encode()).public.thumbprint
    assert {proof.jkt for proof in agent.proofs} == {kid}
    assert key_files(tmp_path) == []


def test_the_manifest_is_printed_only_for_the_environment(
    agent: FakeRegistry, capsys: Printed
) -> None:
    assert "manifest" not in answer(capsys, "register", "-c", "read:calendar")[1]


@pytest.mark.usefixtures("key")
def test_keygen_says_how_to_make_the_key_of_the_environment(capsys: Printed) -> None:
    code, refused = answer(capsys, "keygen")
    assert (code, refused["error"]) == (2, "usage")
    assert "openssl genpkey -algorithm ed25519" in refused["error_description"]


def test_no_key_in_the_environment_is_explained(capsys: Printed) -> None:
    code, refused = answer(capsys, "whoami", "--key-store", "env")
    assert (code, refused["error"]) == (1, "key_file")
    assert "AGENTAUTH_KEY is not set" in refused["error_description"]


@pytest.mark.parametrize("named", ["option", "variable"])
@pytest.mark.parametrize("command", [["whoami"], ["doctor"], ["token", SP_ID], ["mcp"]])
def test_a_key_file_with_another_store_is_wrong_usage(
    named: str, command: list[str], capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either would be another agent than the user means."""
    arguments = ["--key-file", "agent.json"] if named == "option" else []
    if named == "variable":
        monkeypatch.setenv("AGENTAUTH_KEY_FILE", "agent.json")
    code, refused = answer(capsys, *command, "--key-store", "env", *arguments)
    assert (code, refused["error"]) == (2, "usage")
    assert "unset AGENTAUTH_KEY_FILE" in refused["error_description"]


def test_an_unknown_store_is_wrong_usage(capsys: Printed) -> None:
    assert main(["whoami", "--key-store", "vault"]) == 2
    assert "'file', 'keyring', 'env'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        serve_mcp(["--key-store", "vault"])
    assert ended.value.code == 2


@pytest.mark.parametrize("command", ["whoami", "mcp"])
def test_the_keyring_s_package_is_named_if_it_is_missing(
    command: str, capsys: Printed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "agentauth.sdk.keyring_store")
    monkeypatch.setitem(sys.modules, "keyring", None)
    code, refused = answer(capsys, command, "--key-store", "keyring")
    assert (code, refused["error"]) == (2, "usage")
    assert "pip install 'agentauth-sdk[keyring]'" in refused["error_description"]


def test_doctor_names_the_store_and_what_is_wrong_with_it(
    agent: FakeRegistry, found: Discovery, ring: FakeKeyring, capsys: Printed
) -> None:
    there = ("--key-store", "keyring")
    _, before = examined(capsys, *there)
    assert before["key store"][0] == "note"
    answer(capsys, "register", "-c", "read:calendar", *there)
    code, after = examined(capsys, *there)
    assert (code, after["key store"]) == (0, ("ok", "The key is in the keyring fake."))
    assert after["agent"][0] == "ok"
    ring.is_locked = True
    code, locked = examined(capsys, *there)
    assert (code, locked["key store"][0]) == (1, "problem")
    assert "Unlock it" in locked["key store"][1]


def test_the_mcp_server_takes_the_store(
    ring: FakeKeyring, key: str, monkeypatch: pytest.MonkeyPatch, capsys: Printed
) -> None:
    """Through both commands, which have the same options."""
    started: list[object] = []
    monkeypatch.setattr("agentauth.mcp.server.run", lambda options: started.append(options.keys()))
    monkeypatch.setattr("agentauth.mcp.__main__.run", lambda given: started.append(given.keys()))
    for store in ("keyring", "env"):
        assert main(["mcp", "--key-store", store]) == 0
        assert serve_mcp(["--registry", URL, "--key-store", store]) == 0
    assert [type(each) for each in started] == [KeyringStore] * 2 + [EnvironmentStore] * 2


def test_both_commands_of_the_mcp_server_have_the_same_options(capsys: Printed) -> None:
    assert main(["mcp", "--help"]) == 0
    shown = capsys.readouterr().out
    named = {each for action in parser()._actions for each in action.option_strings}
    assert [each for each in named - {"-h"} if f"{each} " not in shown] == []


def test_no_command_prints_the_key_of_the_environment(
    found: Discovery, key: str, capsys: Printed
) -> None:
    for command in (["register", "-c", "read:calendar"], ["whoami", "--offline"], ["doctor"]):
        main([*command, "--json"])
        printed = capsys.readouterr()
        assert key.split("\n")[1] not in printed.out + printed.err
        json.loads(printed.out)
