"""The `file:` backend: keys are private, whole, and only for development."""

import os
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.keys import PublicKey
from kms.backends import BackendError, create, open_signer
from kms.backends.file import FileBackend


@pytest.fixture
def made(key_directory: Path) -> tuple[str, PublicKey, Path]:
    uri, public = create(purpose="token")
    return uri, public, key_directory / uri.removeprefix("file:")


def test_a_key_signs_what_its_public_half_verifies(made: tuple[str, PublicKey, Path]) -> None:
    uri, public, _ = made
    signer = open_signer(uri)
    assert (signer.kid, signer.alg, signer.public) == (public.thumbprint, "EdDSA", public)
    public.verify(b"message", signer.sign(b"message"), alg="EdDSA")


def test_file_and_directory_are_private_and_nothing_unfinished_stays(
    made: tuple[str, PublicKey, Path], key_directory: Path
) -> None:
    assert made[2].stat().st_mode & 0o777 == 0o600
    assert key_directory.stat().st_mode & 0o777 == 0o700
    assert list(key_directory.iterdir()) == [made[2]]


def test_two_keys_are_two_keys(made: tuple[str, PublicKey, Path]) -> None:
    assert create(purpose="token")[1] != made[1]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_others_could_touch_is_refused(made: tuple[str, PublicKey, Path], mode: int) -> None:
    made[2].chmod(mode)
    with pytest.raises(BackendError, match="chmod 600"):
        open_signer(made[0])


@pytest.mark.parametrize("mode", [0o750, 0o755, 0o770])
def test_a_directory_others_could_touch_is_refused(
    made: tuple[str, PublicKey, Path], key_directory: Path, mode: int
) -> None:
    key_directory.chmod(mode)
    with pytest.raises(BackendError, match="chmod 700"):
        open_signer(made[0])
    with pytest.raises(BackendError, match="chmod 700"):
        create(purpose="token")


def test_a_link_is_not_followed(made: tuple[str, PublicKey, Path], tmp_path: Path) -> None:
    elsewhere = made[2].rename(tmp_path / "elsewhere.pem")
    made[2].symlink_to(elsewhere)
    with pytest.raises(BackendError, match="could not be read"):
        open_signer(made[0])


def test_another_user_s_file_is_refused(
    made: tuple[str, PublicKey, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: made[2].stat().st_uid + 1)
    with pytest.raises(BackendError, match="another user"):
        open_signer(made[0])


def test_a_missing_file_and_a_file_without_a_key_are_refused(made: tuple[str, PublicKey, Path]) -> None:
    made[2].write_text("-----BEGIN PRIVATE KEY-----\nnot a key\n-----END PRIVATE KEY-----\n")
    with pytest.raises(BackendError, match="holds no key") as refused:
        open_signer(made[0])
    assert "not a key" not in str(refused.value)
    made[2].unlink()
    with pytest.raises(BackendError, match="could not be read"):
        open_signer(made[0])


@pytest.mark.parametrize(
    "uri",
    [
        "file:../keys/token-" + "A" * 43 + ".pem",
        "file:/etc/passwd",
        "file:",
        "file:token-" + "A" * 43 + ".pem\n",
        "file:token-" + "A" * 42 + "/.pem",
        "vault:token",
        "",
    ],
)
def test_an_address_that_is_no_key_file_of_ours_is_refused(key_directory: Path, uri: str) -> None:
    with pytest.raises(BackendError, match=r"not the address|no key backend"):
        open_signer(uri)


def test_KM_13_production_has_no_keys_in_files(settings: Settings, made: tuple[str, PublicKey, Path]) -> None:
    settings.DEVELOPMENT = False
    for act in (lambda: create(purpose="token"), lambda: open_signer(made[0])):
        with pytest.raises(BackendError, match="development"):
            act()


def test_a_disk_that_refuses_is_an_error_of_the_backend_and_leaves_no_key(
    key_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        FileBackend(key_directory).create(purpose="token")
    assert not list(key_directory.iterdir())
