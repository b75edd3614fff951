"""Keys in files, for development only: one PKCS #8 PEM (0600) per key, in one directory (0700).

With KEY_FILE_PASSPHRASE_FILE they are encrypted, so that a disk copy without that file is useless.
"""

import os
import re
import stat
from functools import cached_property
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt
from django.conf import settings

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import Algorithm, PrivateKey, PublicKey
from kms.backends.errors import BackendError

SCHEME: Final = "file"
# Purpose and thumbprint: no name can leave the directory.
_NAME = re.compile(r"[a-z]{1,16}-[A-Za-z0-9_-]{43}\.pem")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES: Final = 8192
_SHORTEST_PASSPHRASE: Final = 16


class FileBackend:
    """The `file:` backend. A URI names a file inside KEY_DIRECTORY, so the directory may move."""

    def create(self, *, place: str, purpose: str, algorithm: Algorithm) -> str:
        """Make a key.

        Its file is on disk, complete and private, before this returns. `place` is empty.
        """
        if place:
            raise BackendError("KEY_BACKEND=file takes no place: keys are in VAR_DIR/keys.")
        directory = _directory()
        private_key = PrivateKey.generate(algorithm)
        name = f"{purpose}-{private_key.public.thumbprint}.pem"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check(directory, directory.stat(), "directory")
            _write(directory, name, private_key.to_pem(_passphrase(name)))
        except OSError as error:
            raise BackendError(
                f"A key file could not be written in {directory}: {error.strerror}."
            ) from error
        return f"{SCHEME}:{name}"

    def open(self, uri: str) -> "_KeyFile":
        """The key in that file, which is read at its first use."""
        scheme, _, name = uri.partition(":")
        if scheme != SCHEME or not _NAME.fullmatch(name):
            raise BackendError("That is not the address of a key file.")
        return _KeyFile(name)


class _KeyFile:
    """One key, read once; refused if other users could have read or written the file."""

    def __init__(self, name: str) -> None:
        self._name = name

    def public(self) -> PublicKey:
        return self._key.public

    def sign(self, message: bytes, alg: Algorithm) -> bytes:
        # The key knows its own algorithm.
        return self._key.sign(message)

    @cached_property
    def _key(self) -> PrivateKey:
        directory, passphrase = _directory(), _passphrase(self._name)
        try:
            _check(directory, directory.stat(), "directory")
            pem = _read(directory, self._name)
        except OSError as error:
            raise BackendError(
                f"The key file {self._name} could not be read: {error.strerror}."
            ) from error
        try:
            return PrivateKey.from_pem(pem, passphrase)
        except InvalidKeyError:
            how = (
                "that the passphrase opens"
                if passphrase
                else "that is readable without a passphrase"
            )
            raise BackendError(f"The key file {self._name} contains no key {how}.") from None


def _directory() -> Path:
    # A reader of this disk has the keys: no audit, no hardware, no second person. Not for
    # production.
    if not settings.DEVELOPMENT:
        raise BackendError("Keys in files are for development; set KEY_BACKEND to a key service.")
    return Path(settings.KEY_DIRECTORY)


def _passphrase(name: str) -> bytes | None:
    """The passphrase of that key file, derived from the configured one; None without one.

    The library's PKCS #8 encryption is fast to guess, so the passphrase goes through scrypt (RFC
    7914).
    """
    if not settings.KEY_FILE_PASSPHRASE_FILE:
        return None
    path = Path(settings.KEY_FILE_PASSPHRASE_FILE)
    try:
        passphrase = _read(path.parent, path.name).rstrip(b"\r\n")
    except OSError as error:
        raise BackendError(
            f"KEY_FILE_PASSPHRASE_FILE could not be read: {error.strerror}."
        ) from error
    if len(passphrase) < _SHORTEST_PASSPHRASE:
        raise BackendError(f"The passphrase of key files is at least {_SHORTEST_PASSPHRASE} bytes.")
    # 32 MiB and 0.1 s per guess. The salt is the name, which holds the key's thumbprint.
    scrypt = Scrypt(salt=name.encode(), length=32, n=2**15, r=8, p=1)
    return scrypt.derive(passphrase).hex().encode()


def _write(directory: Path, name: str, pem: bytes) -> None:
    # Written aside and renamed: a crash leaves no key or a complete one, and no row names it yet.
    unfinished = directory / f".{name}.new"
    try:
        descriptor = os.open(
            unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600
        )
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        unfinished.rename(directory / name)
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # The rename must survive a power failure: the row that names this file commits next.
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(directory: Path, name: str) -> bytes:
    # O_NOFOLLOW: through a link, another directory's permissions would apply instead of ours.
    descriptor = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW)
    with os.fdopen(descriptor, "rb") as file:
        _check(directory, os.fstat(file.fileno()), name)
        return file.read(_MAX_BYTES)


def _check(directory: Path, found: os.stat_result, what: str) -> None:
    if found.st_mode & _OTHERS:
        fix = "700" if stat.S_ISDIR(found.st_mode) else "600"
        raise BackendError(
            f"The key {what} in {directory} is open to other users of this machine; chmod "
            f"{fix} it, "
            "and rotate the key if someone may have read it."
        )
    if found.st_uid != os.geteuid():
        raise BackendError(
            f"The key {what} in {directory} belongs to another user of this machine."
        )
