"""A log that a test can make lie, and a witness over real HTTP."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from agentauth.protocol.checkpoint import Checkpoint, sign_checkpoint
from agentauth.protocol.checkpoint_proofs import AddCheckpoint
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.log_hashes import leaf_hash, node_hash
from agentauth.protocol.merkle_proofs import prove_consistency, tree_root
from agentauth.protocol.signed_notes import SignatureType, Verifier, parse_note, verify_signatures
from agentauth.sdk.witness.cosigning import Witness
from agentauth.sdk.witness.latest_checkpoints import State
from agentauth.sdk.witness.server import WitnessServer

ORIGIN = "log.example/v1/audit"
NAME = "witness.example/w1"
# The SHA-256 of nothing, in which the tests spell the empty tree's root.
EMPTY = tree_root(0, lambda *_: b"")


class Log:
    """A log of any number of leaves; `branch` makes another history of the same log."""

    def __init__(
        self, origin: str = ORIGIN, signer: LocalSigner | None = None, branch: str = ""
    ) -> None:
        self.origin, self.branch = origin, branch
        self.signer = signer or LocalSigner(PrivateKey.generate())
        self.key = Verifier(origin, self.signer.public)

    def other(self, branch: str) -> "Log":
        """The same log, as another auditor sees it."""
        return Log(self.origin, self.signer, branch)

    def subtree(self, height: int, index: int) -> bytes:
        if height == 0:
            # Histories diverge after the first three leaves.
            return leaf_hash(f"{index}{self.branch if index >= 3 else ''}".encode())
        return node_hash(
            self.subtree(height - 1, 2 * index), self.subtree(height - 1, 2 * index + 1)
        )

    def checkpoint(self, size: int) -> Checkpoint:
        return Checkpoint(self.origin, size, tree_root(size, self.subtree))

    def note(self, size: int) -> str:
        return sign_checkpoint(self.checkpoint(size), signer=self.signer)

    def path(self, old: int, size: int) -> tuple[bytes, ...]:
        return tuple(prove_consistency(old, size, self.subtree)) if 0 < old <= size else ()

    def request(self, old: int, size: int) -> str:
        return AddCheckpoint(old, self.path(old, size), self.note(size)).text


class Served:
    """A witness that listens; its key, its files, and a client."""

    def __init__(self, server: WitnessServer, client: httpx.Client) -> None:
        self.server, self.client = server, client
        self.key = server.witness.verifier

    def add(self, body: str | bytes) -> httpx.Response:
        return self.client.post("/add-checkpoint", content=body)

    def cosigned(self, answer: httpx.Response, note: str) -> int:
        """The time at which the witness saw `note`. The answer is one line and nothing else."""
        assert answer.status_code == 200, answer.text
        assert answer.text.count("\n") == 1
        [verified] = verify_signatures(parse_note(note + answer.text), [self.key])
        assert verified.at is not None
        return verified.at


def new_witness(folder: Path, *logs: Log, signer: LocalSigner | None = None) -> Witness:
    """A witness with its own state in `folder`, created if there is none."""
    signer = signer or LocalSigner(PrivateKey.generate())
    vkey = Verifier(NAME, signer.public, SignatureType.COSIGNATURE).vkey
    if not (folder / "state").exists():
        State.create(folder / "state", vkey=vkey)
    known: dict[str, list[Verifier]] = {}
    for log in logs:
        known.setdefault(log.origin, []).append(log.key)
    return Witness(name=NAME, signer=signer, logs=known, state=folder / "state")


@contextmanager
def serving(witness: Witness, **more: Any) -> Iterator[Served]:
    server = WitnessServer(("127.0.0.1", 0), witness, **more)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        with httpx.Client(base_url=server.url, timeout=20) as client:
            yield Served(server, client)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
