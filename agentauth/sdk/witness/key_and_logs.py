"""The files a witness starts from: its key with its name, and the logs it knows.

Its state is elsewhere.
"""

import json
from pathlib import Path
from typing import Final

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, NoteError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import SignatureType, Verifier, parse_vkey
from agentauth.sdk.errors import KeyFileError, WitnessStateError
from agentauth.sdk.private_files import MAX_BYTES, create_private, read_private

VERSION: Final = 1
Logs = dict[str, list[Verifier]]


def create_witness_key(path: Path, *, name: str) -> Verifier:
    """Create a key under `name` and store both in `path`.

    Returns the verifier, whose vkey others configure to trust this key. Raises KeyFileError and
    NoteError.
    """
    key = PrivateKey.generate()
    try:
        verifier = Verifier(name, key.public, SignatureType.COSIGNATURE)
    except ValueError:
        raise NoteError(
            "A witness's name must not be empty or contain spaces or plus signs."
        ) from None
    body = {"version": VERSION, "name": name, "private_key": key.to_pem().decode("ascii")}
    if not create_private(path, json.dumps(body, indent=2)):
        raise KeyFileError(f"{path} already exists: a key is never overwritten.")
    return verifier


def read_witness_key(path: Path) -> tuple[str, LocalSigner]:
    """Read the name and the key. Raises KeyFileError, also if other users can read the file."""
    data = read_private(path)
    if data is None:
        raise KeyFileError(f"{path} does not exist. Create it with witness-keygen.")
    try:
        body = read_object(data, max_bytes=MAX_BYTES)
        version, name = body["version"], str(body["name"])
        signer = LocalSigner(PrivateKey.from_pem(str(body["private_key"]).encode()))
        Verifier(name, signer.public, SignatureType.COSIGNATURE)
    except (AgentAuthError, KeyError, ValueError):
        # The file holds the key, so its content must not appear in the message.
        raise KeyFileError(f"{path} is not a witness key file.") from None
    if version != VERSION:
        raise KeyFileError(f"{path} was written by another version of this library.")
    return name, signer


def read_logs(text: str) -> Logs:
    """Read the trusted keys of each log.

    A line is a vkey whose name is the log's origin, or a vkey, a space and the origin. Empty lines
    and # comments are skipped. Raises WitnessStateError, naming the line.
    """
    logs: Logs = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.startswith("#"):
            vkey, _, origin = line.partition(" ")
            verifier = _log_key(vkey, number)
            keys = logs.setdefault(origin or verifier.name, [])
            if any((key.name, key.key_id) == (verifier.name, verifier.key_id) for key in keys):
                raise WitnessStateError(
                    f"Line {number} of the logs repeats the key of an earlier line."
                )
            keys.append(verifier)
    if not logs:
        raise WitnessStateError("The file of logs names no log.")
    return logs


def _log_key(vkey: str, number: int) -> Verifier:
    try:
        verifier = parse_vkey(vkey)
    except NoteError as error:
        raise WitnessStateError(f"Line {number} of the logs: {error.description}") from None
    if verifier.kind is not SignatureType.NOTE:
        raise WitnessStateError(f"Line {number} of the logs: this is the key of a witness.")
    return verifier
