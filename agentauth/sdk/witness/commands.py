"""The two commands of a witness: create one, and run it."""

import argparse
import asyncio
from collections.abc import Mapping
from pathlib import Path

from agentauth.sdk.errors import WitnessStateError
from agentauth.sdk.receipts import read_file
from agentauth.sdk.terminal import tell

from .files import create_witness_key, read_logs, read_witness_key
from .rules import Witness
from .server import WitnessServer
from .state import State


async def witness_keygen(options: argparse.Namespace) -> Mapping[str, object]:
    """Create the key file and its state. Raises KeyFileError, WitnessStateError, NoteError."""
    vkey = _make(Path(options.key), Path(options.state), options.name)
    return {"key": options.key, "state": options.state, "vkey": vkey}


async def witness(options: argparse.Namespace) -> Mapping[str, object]:
    """Serve until the process is stopped, at any moment: what it sent is on disk."""
    server = open_server(options)
    tell(f"{server.witness.verifier.vkey} listens on {server.url}")
    try:
        await asyncio.to_thread(server.serve_forever)
    finally:
        server.shutdown()
        server.server_close()
    return {}


def open_server(options: argparse.Namespace) -> WitnessServer:
    """Open the witness of these files; it listens already.

    Raises KeyFileError and WitnessStateError.
    """
    name, signer = read_witness_key(Path(options.key))
    logs = read_logs(read_file(options.logs))
    witness = Witness(name=name, signer=signer, logs=logs, state=Path(options.state))
    try:
        return WitnessServer((options.host, options.port), witness)
    except (OSError, OverflowError) as error:
        raise WitnessStateError(
            f"Cannot listen on {options.host}:{options.port}: {error}."
        ) from None


def _make(key: Path, state: Path, name: str) -> str:
    # Checked first: otherwise an existing state would leave a new key without one.
    if state.exists():
        raise WitnessStateError(f"{state} already exists.")
    vkey = create_witness_key(key, name=name).vkey
    State.create(state, vkey=vkey)
    return vkey
