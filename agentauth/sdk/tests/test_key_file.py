import fcntl
import json
import os
import stat
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from agentauth.protocol.keys import PrivateKey
from agentauth.sdk.errors import KeyFileError
from agentauth.sdk.identity import Identity
from agentauth.sdk.key_file import KeyFile, config_directory, default_path
from agentauth.sdk.private_files import locked

URL = "http://localhost:8000"


def made(tmp_path: Path) -> tuple[KeyFile, Identity]:
    file = KeyFile(tmp_path / "deep" / "agent.json")
    return file, file.create(Identity(URL, PrivateKey.generate()))


def test_what_is_stored_comes_back(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    file.save(replace(identity, manifest="a.b.c", agent_id="id"))
    loaded = file.load(URL)
    assert loaded is not None
    assert (loaded.manifest, loaded.agent_id) == ("a.b.c", "id")
    assert loaded.signer.public == identity.signer.public


def test_missing_key_file_gives_no_identity(tmp_path: Path) -> None:
    assert KeyFile(tmp_path / "none.json").load(URL) is None


def test_file_is_0600_and_directory_0700_whatever_the_umask(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        file, identity = made(tmp_path)
        file.save(replace(identity, agent_id="id"))
    finally:
        os.umask(previous)
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700


def test_a_process_forked_under_the_lock_does_not_keep_it(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    reading, writing = os.pipe()
    with locked(path):
        child = os.fork()
        if not child:
            os.close(writing)
            # Lives until the parent closes its end.
            os.read(reading, 1)
            os._exit(0)
    try:
        with (tmp_path / ".agent.json.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(child, 0)


def test_a_forked_process_does_not_end_the_lock_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "agent.json"
    with ExitStack() as held:
        held.enter_context(locked(path))
        child = os.fork()
        if not child:
            held.close()
            os._exit(0)
        os.waitpid(child, 0)
        with (tmp_path / ".agent.json.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610, 0o777])
def test_a_file_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    file, _ = made(tmp_path)
    file.path.chmod(mode)
    with pytest.raises(KeyFileError, match="others"):
        file.load(URL)


def test_the_owner_s_read_only_mode_is_fine(tmp_path: Path) -> None:
    file, _ = made(tmp_path)
    file.path.chmod(0o400)
    assert file.load(URL) is not None


def test_a_file_of_another_registry_is_refused(tmp_path: Path) -> None:
    file, _ = made(tmp_path)
    with pytest.raises(KeyFileError, match="belongs to the registry"):
        file.load("https://registry.example.com")


@pytest.mark.parametrize("content", [b"", b"{}", b"not json", b"[]", b'{"version":1}', b"\xff"])
def test_a_broken_file_is_refused_and_not_replaced(tmp_path: Path, content: bytes) -> None:
    file, _ = made(tmp_path)
    file.path.write_bytes(content)
    with pytest.raises(KeyFileError):
        file.load(URL)
    assert file.path.read_bytes() == content


def test_another_version_is_refused(tmp_path: Path) -> None:
    file, _ = made(tmp_path)
    body = json.loads(file.path.read_text())
    file.path.write_text(json.dumps(body | {"version": 2}))
    with pytest.raises(KeyFileError, match="version"):
        file.load(URL)


def test_file_of_another_version_is_named_as_such_whatever_its_members(tmp_path: Path) -> None:
    file, _ = made(tmp_path)
    file.path.write_text(json.dumps({"version": 2, "registry": URL}))
    with pytest.raises(KeyFileError, match="another version of this library"):
        file.load(URL)


def test_first_of_two_concurrent_new_keys_wins(tmp_path: Path) -> None:
    file, first = made(tmp_path)
    second = file.create(Identity(URL, PrivateKey.generate()))
    assert second.signer.public == first.signer.public


def test_nothing_is_left_beside_the_file(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    file.create(identity)
    file.save(replace(identity, agent_id="id"))
    assert [path.name for path in file.path.parent.iterdir()] == ["agent.json"]


ADD = """
import sys
from dataclasses import replace
from pathlib import Path
from agentauth.sdk.key_file import KeyFile

for _ in range(50):
    KeyFile(Path(sys.argv[1])).update(
        sys.argv[2], lambda stored: replace(stored, agent_id=stored.agent_id + "x")
    )
"""


def test_of_changes_by_several_processes_none_is_lost(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    file.save(replace(identity, agent_id=""))
    adding = [subprocess.Popen([sys.executable, "-c", ADD, str(file.path), URL]) for _ in range(4)]
    assert [process.wait(60) for process in adding] == [0] * 4
    loaded = file.load(URL)
    assert loaded is not None
    assert loaded.agent_id == "x" * 200


def test_what_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    file.save(replace(identity, agent_id="id"))
    written = file.path.stat().st_mtime_ns
    file.update(URL, lambda stored: replace(stored, agent_id="id"))
    assert file.path.stat().st_mtime_ns == written
    assert [path.name for path in file.path.parent.iterdir()] == ["agent.json"]


def test_what_comes_next_is_stored_beside_what_is(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    following = PrivateKey.generate("ES256")
    file.save(replace(identity, next_key=following, next_manifest="a.b.c"))
    loaded = file.load(URL)
    assert loaded is not None
    assert loaded.next_key is not None
    assert loaded.next_key.public == following.public
    assert loaded.signer.public == identity.signer.public
    assert loaded.next_manifest == "a.b.c"
    assert following.to_pem().decode().splitlines()[1] not in repr(loaded)


def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, identity = made(tmp_path)
    before = file.path.read_bytes()

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space"):
        file.save(replace(identity, agent_id="id"))
    assert file.path.read_bytes() == before
    assert len(list(file.path.parent.iterdir())) == 1


def test_a_link_is_followed_and_kept(tmp_path: Path) -> None:
    real, identity = made(tmp_path)
    link = tmp_path / "link.json"
    link.symlink_to(real.path)
    KeyFile(link).save(replace(identity, agent_id="id"))
    assert link.is_symlink()
    assert json.loads(real.path.read_text())["agent_id"] == "id"


def test_no_message_and_no_repr_shows_the_key(tmp_path: Path) -> None:
    file, identity = made(tmp_path)
    assert identity.private_key
    secret = identity.private_key.to_pem().decode().splitlines()[1]
    file.path.write_text(file.path.read_text().replace("-----BEGIN", "-----BEGUN"))
    with pytest.raises(KeyFileError) as refused:
        file.load(URL)
    assert secret not in str(refused.value)
    assert secret not in repr(identity)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ("/etc/mine", Path("/etc/mine")),
        ("relative", Path("/home/me/.config")),
        ("", Path("/home/me/.config")),
    ],
)
def test_the_default_directory_follows_xdg(
    monkeypatch: pytest.MonkeyPatch, configured: str, expected: Path
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CONFIG_HOME", configured)
    monkeypatch.setattr("sys.platform", "linux")
    assert config_directory() == expected


def test_every_registry_has_its_own_default_file() -> None:
    assert default_path(URL).name == "localhost-8000.json"
    assert default_path("https://registry.example.com").name == "registry.example.com.json"
    assert default_path(URL).parent.name == "agentauth"
