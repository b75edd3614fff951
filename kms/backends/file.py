"""Keys in files, for development alone: one PKCS #8 PEM a key, mode 0600, in one directory of mode 0700."""

import os
import re
import stat
from pathlib import Path
from typing import Final

from django.conf import settings

from agentauth.protocol.errors import InvalidKeyError
from agentauth.protocol.keys import LocalSigner, PrivateKey, PublicKey, Signer
from kms.backends import BackendError

SCHEME: Final = "file"
# Purpose and thumbprint: nothing that could leave the directory.
_NAME = re.compile(r"[a-z]{1,16}-[A-Za-z0-9_-]{43}\.pem")
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_MAX_BYTES: Final = 8192


class FileBackend:
    """The `file:` backend. URIs name a file inside the directory, so the directory may move."""

    def __init__(self, directory: Path) -> None:
        # Whoever reads this disk has the keys: no audit, no hardware, no second person. Not for production.
        if not settings.DEVELOPMENT:
            raise BackendError("Keys in files are for development; set KEY_BACKEND to a key service.")
        self._directory = directory

    def create(self, *, purpose: str) -> tuple[str, PublicKey]:
        """Make an Ed25519 key; its file is on the disk, whole and private, before this returns."""
        private_key = PrivateKey.generate("EdDSA")
        name = f"{purpose}-{private_key.public.thumbprint}.pem"
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check(self._directory.stat(), "directory")
            self._write(name, private_key.to_pem())
        except OSError as error:
            raise BackendError(
                f"A key file could not be written in {self._directory}: {error.strerror}."
            ) from error
        return f"{SCHEME}:{name}", private_key.public

    def open(self, uri: str) -> Signer:
        """Read the key again from its file; refuse one that others could have read or put there."""
        scheme, _, name = uri.partition(":")
        if scheme != SCHEME or not _NAME.fullmatch(name):
            raise BackendError("That is not the address of a key file.")
        try:
            self._check(self._directory.stat(), "directory")
            pem = self._read(name)
        except OSError as error:
            raise BackendError(f"The key file {name} could not be read: {error.strerror}.") from error
        try:
            return LocalSigner(PrivateKey.from_pem(pem))
        except InvalidKeyError:
            raise BackendError(f"The key file {name} holds no key.") from None

    def _write(self, name: str, pem: bytes) -> None:
        # Written aside and renamed: a crash leaves either no key or a whole one, and no row names it yet.
        unfinished = self._directory / f".{name}.new"
        try:
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            unfinished.rename(self._directory / name)
        except OSError:
            unfinished.unlink(missing_ok=True)
            raise
        directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            # The rename itself must survive a power failure: the row that names this file commits next.
            os.fsync(directory)
        finally:
            os.close(directory)

    def _read(self, name: str) -> bytes:
        # O_NOFOLLOW: a link would let another directory's permissions stand in for ours.
        descriptor = os.open(self._directory / name, os.O_RDONLY | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            self._check(os.fstat(file.fileno()), name)
            return file.read(_MAX_BYTES)

    def _check(self, found: os.stat_result, what: str) -> None:
        if found.st_mode & _OTHERS:
            fix = "700" if stat.S_ISDIR(found.st_mode) else "600"
            raise BackendError(
                f"The key {what} in {self._directory} is open to other users of this machine; chmod {fix} it, "
                "and rotate the key if someone may have read it."
            )
        if found.st_uid != os.geteuid():
            raise BackendError(
                f"The key {what} in {self._directory} belongs to another user of this machine."
            )
