"""The files a witness starts from: its key with its name, and the logs it knows. What it remembers is elsewhere."""

import json
from pathlib import Path
from typing import Final

from agentauth.protocol.encoding import read_object
from agentauth.protocol.errors import AgentAuthError, NoteError
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.notes import SignatureType, Verifier, parse_vkey
from agentauth.sdk.errors import KeyFileError, WitnessStateError
from agentauth.sdk.private_files import MAX_BYTES, create_private, read_private

VERSION: Final = 1
Logs = dict[str, list[Verifier]]


def create_witness_key(path: Path, *, name: str) -> Verifier:
    """Make a new key under `name` and keep both in `path`; how others are told to trust it. Raises KeyFileError and NoteError."""
    key = PrivateKey.generate()
    try:
        verifier = Verifier(name, key.public, SignatureType.COSIGNATURE)
    except ValueError:
        raise NoteError("A witness's name is not empty and holds neither spaces nor plus signs.") from None
    body = {"version": VERSION, "name": name, "private_key": key.to_pem().decode("ascii")}
    if not create_private(path, json.dumps(body, indent=2)):
        raise KeyFileError(f"{path} is there already: a key is never overwritten.")
    return verifier


def read_witness_key(path: Path) -> tuple[str, LocalSigner]:
    """The name and the key. Raises KeyFileError, also where others can read the file."""
    data = read_private(path)
    if data is None:
        raise KeyFileError(f"{path} is not there. Make it with witness-keygen.")
    try:
        body = read_object(data, max_bytes=MAX_BYTES)
        version, name = body["version"], str(body["name"])
        signer = LocalSigner(PrivateKey.from_pem(str(body["private_key"]).encode()))
        Verifier(name, signer.public, SignatureType.COSIGNATURE)
    except (AgentAuthError, KeyError, ValueError):
        # Nothing of the content goes into the message: it holds the key.
        raise KeyFileError(f"{path} is not the key file of a witness.") from None
    if version != VERSION:
        raise KeyFileError(f"{path} was written by another version of this library.")
    return name, signer


def read_logs(text: str) -> Logs:
    """The trusted keys of each log: a line is a vkey, whose name is the log's origin, or a vkey, a space and the origin.

    Empty lines and lines that begin with # say nothing. Raises WitnessStateError, naming the line.
    """
    logs: Logs = {}
    for number, line in enumerate(text.split("\n"), 1):
        if line and not line.startswith("#"):
            vkey, _, origin = line.partition(" ")
            verifier = _log_key(vkey, number)
            keys = logs.setdefault(origin or verifier.name, [])
            if any((key.name, key.key_id) == (verifier.name, verifier.key_id) for key in keys):
                raise WitnessStateError(f"Line {number} of the logs names a key for the second time.")
            keys.append(verifier)
    if not logs:
        raise WitnessStateError("The file of logs names none.")
    return logs


def _log_key(vkey: str, number: int) -> Verifier:
    try:
        verifier = parse_vkey(vkey)
    except NoteError as error:
        raise WitnessStateError(f"Line {number} of the logs: {error.description}") from None
    if verifier.kind is not SignatureType.NOTE:
        raise WitnessStateError(f"Line {number} of the logs: that is the key of a witness.")
    return verifier
