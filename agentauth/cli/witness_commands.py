"""The two commands of a witness: create one, and run it."""

import asyncio
from pathlib import Path

from agentauth.sdk.errors import WitnessStateError
from agentauth.sdk.offline_receipt_check import read_file
from agentauth.sdk.stderr_output import print_stderr
from agentauth.sdk.witness.cosigning import Witness
from agentauth.sdk.witness.key_and_logs import create_witness_key, read_logs, read_witness_key
from agentauth.sdk.witness.latest_checkpoints import State
from agentauth.sdk.witness.server import WitnessServer

from .result import Outcome


async def witness_keygen(*, name: str, key: Path, state: Path) -> Outcome:
    """Create the key file and its state. Raises KeyFileError, WitnessStateError, NoteError."""
    return Outcome({"key": str(key), "state": str(state), "vkey": _make(key, state, name)})


async def witness(*, key: Path, state: Path, logs: Path, host: str, port: int) -> Outcome:
    """Serve until the process is stopped, at any moment: what it sent is on disk."""
    server = open_server(key, state, logs, host=host, port=port)
    print_stderr(f"{server.witness.verifier.vkey} listens on {server.url}")
    try:
        await asyncio.to_thread(server.serve_forever)
    finally:
        server.shutdown()
        server.server_close()
    return Outcome({})


def open_server(key: Path, state: Path, logs: Path, *, host: str, port: int) -> WitnessServer:
    """Open the witness of these files; it listens already.

    Raises KeyFileError and WitnessStateError.
    """
    name, signer = read_witness_key(key)
    witness = Witness(name=name, signer=signer, logs=read_logs(read_file(str(logs))), state=state)
    try:
        return WitnessServer((host, port), witness)
    except (OSError, OverflowError) as error:
        raise WitnessStateError(f"Cannot listen on {host}:{port}: {error}.") from None


def _make(key: Path, state: Path, name: str) -> str:
    # Checked first: otherwise an existing state would leave a new key without one.
    if state.exists():
        raise WitnessStateError(f"{state} already exists.")
    vkey = create_witness_key(key, name=name).vkey
    State.create(state, vkey=vkey)
    return vkey
