"""The `file:` backend: keys are private, complete, and only for development."""

import hashlib
import os
import traceback
from pathlib import Path

import pytest
from pytest_django.fixtures import Settings

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import PrivateKey, PublicKey
from kms.backends import BackendError, create, open_signer, public_key
from kms.backends.file import FileBackend


@pytest.fixture
def made(key_directory: Path) -> tuple[str, PublicKey, Path]:
    uri, public = create(purpose="token")
    return uri, public, key_directory / uri.removeprefix("file:")


def test_a_key_signs_what_its_public_half_verifies(made: tuple[str, PublicKey, Path]) -> None:
    uri, public, _ = made
    signer = open_signer(uri, public)
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


@pytest.fixture
def passphrase(settings: Settings, tmp_path: Path) -> Path:
    """Configure a passphrase; returns its file."""
    path = tmp_path / "passphrase"
    path.touch(0o600)
    path.write_text(PASSPHRASE + "\n")
    settings.KEY_FILE_PASSPHRASE_FILE = str(path)
    return path


PASSPHRASE = "a-passphrase-of-tests"


def test_key_is_encrypted_and_only_its_passphrase_opens_it(
    passphrase: Path, key_directory: Path
) -> None:
    uri, public = create(purpose="token")
    name = uri.removeprefix("file:")
    pem = (key_directory / name).read_bytes()
    assert pem.startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    # Decrypt it without our code, as docs/keys/file.md describes.
    opens = hashlib.scrypt(
        PASSPHRASE.encode(), salt=name.encode(), n=2**15, r=8, p=1, maxmem=2**26, dklen=32
    )
    assert PrivateKey.from_pem(pem, opens.hex().encode()).public == public
    with pytest.raises(InvalidKeyError):
        PrivateKey.from_pem(pem, PASSPHRASE.encode())
    public.verify(b"m", open_signer(uri, public).sign(b"m"), alg="EdDSA")
    passphrase.write_text("another-passphrase-of-tests")
    with pytest.raises(BackendError, match="that the passphrase opens") as refused:
        public_key(uri)
    assert "of-tests" not in "".join(traceback.format_exception(refused.value))


def test_a_key_is_encrypted_exactly_where_there_is_a_passphrase(
    made: tuple[str, PublicKey, Path], passphrase: Path, settings: Settings
) -> None:
    with pytest.raises(BackendError, match="that the passphrase opens"):
        public_key(made[0])
    uri, _ = create(purpose="token")
    settings.KEY_FILE_PASSPHRASE_FILE = ""
    with pytest.raises(BackendError, match="without a passphrase"):
        public_key(uri)
    assert public_key(made[0]) == made[1]


def test_missing_short_or_world_readable_passphrase_is_refused(passphrase: Path) -> None:
    passphrase.chmod(0o644)
    with pytest.raises(BackendError, match="chmod 600"):
        create(purpose="token")
    passphrase.chmod(0o600)
    passphrase.write_text("fifteen-letters\n")
    with pytest.raises(BackendError, match="at least 16"):
        create(purpose="token")
    passphrase.unlink()
    with pytest.raises(BackendError, match="could not be read"):
        create(purpose="token")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o666])
def test_a_file_others_could_touch_is_refused(made: tuple[str, PublicKey, Path], mode: int) -> None:
    made[2].chmod(mode)
    with pytest.raises(BackendError, match="chmod 600"):
        public_key(made[0])


@pytest.mark.parametrize("mode", [0o750, 0o755, 0o770])
def test_a_directory_others_could_touch_is_refused(
    made: tuple[str, PublicKey, Path], key_directory: Path, mode: int
) -> None:
    key_directory.chmod(mode)
    with pytest.raises(BackendError, match="chmod 700"):
        public_key(made[0])
    with pytest.raises(BackendError, match="chmod 700"):
        create(purpose="token")


def test_a_link_is_not_followed(made: tuple[str, PublicKey, Path], tmp_path: Path) -> None:
    elsewhere = made[2].rename(tmp_path / "elsewhere.pem")
    made[2].symlink_to(elsewhere)
    with pytest.raises(BackendError, match="could not be read"):
        public_key(made[0])


def test_another_user_s_file_is_refused(
    made: tuple[str, PublicKey, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: made[2].stat().st_uid + 1)
    with pytest.raises(BackendError, match="another user"):
        public_key(made[0])


def test_a_missing_file_and_a_file_without_a_key_are_refused(
    made: tuple[str, PublicKey, Path],
) -> None:
    made[2].write_text("-----BEGIN PRIVATE KEY-----\nnot a key\n-----END PRIVATE KEY-----\n")
    with pytest.raises(BackendError, match="contains no key") as refused:
        public_key(made[0])
    assert "not a key" not in str(refused.value)
    made[2].unlink()
    with pytest.raises(BackendError, match="could not be read"):
        public_key(made[0])


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
def test_malformed_key_file_address_is_refused(key_directory: Path, uri: str) -> None:
    with pytest.raises(BackendError, match=r"not the address|no key backend"):
        public_key(uri)


def test_KM_13_production_has_no_keys_in_files(
    settings: Settings, made: tuple[str, PublicKey, Path]
) -> None:
    settings.DEVELOPMENT = False
    for act in (lambda: create(purpose="token"), lambda: public_key(made[0])):
        with pytest.raises(BackendError, match="development"):
            act()


def test_a_disk_that_refuses_is_an_error_of_the_backend_and_leaves_no_key(
    key_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(BackendError, match="No space left"):
        FileBackend().create(place="", purpose="token", algorithm="EdDSA")
    assert not list(key_directory.iterdir())
