"""A log with a checkpoint and a witness, read over its public endpoints.

Answers are checked with the protocol's own arithmetic.
"""

import base64
from datetime import datetime
from typing import Any

from django.db import transaction
from django.test import Client

from agentauth.protocol.checkpoint import OpenedCheckpoint, open_checkpoint
from agentauth.protocol.keys import LocalSigner, PrivateKey
from agentauth.protocol.signed_notes import SignatureType, Verifier, cosign_text
from audit import kinds
from audit.checkpoints.log_breaks import origin
from audit.checkpoints.signing import checkpoint_log, newest_checkpoint
from audit.log.sequencer import sequence_until_empty
from audit.models import Checkpoint, Cosignature, Leaf
from audit.new_ids import new_id_text
from audit.services import NewEvent, check_data, record_many
from audit.tests.signing import verifier

TILE = 256
WITNESS = LocalSigner(PrivateKey.generate("EdDSA"))
WITNESS_KEY = Verifier("witness.example/w1", WITNESS.public, SignatureType.COSIGNATURE)
# Every public path of the log below /v1/audit/, with a valid query; {} is an event's id.
PATHS = {
    "checkpoint": "",
    "proof/inclusion": "event={}",
    "proof/consistency": "first=1&second=300",
    "proof/bundle": "event={}",
    "tile/0/000.p/1": "",
    "tile/entries/000.p/1": "",
}
JSON_ONLY = ["proof/inclusion", "proof/consistency"]


def grow(count: int, *, now: datetime) -> None:
    """Add `count` leaves, counting events that already wait for their number."""
    count -= sequence_until_empty(now=now)
    with transaction.atomic():
        record_many([_entry(now) for _ in range(count)], now=now)
    sequence_until_empty(now=now)


def _entry(now: datetime) -> NewEvent:
    return NewEvent(
        id=new_id_text(),
        kind=kinds.DECISION_ALLOWED,
        at=now,
        actor_kind="service_provider",
        actor_id="",
        request_id="",
        outcome="success",
        data=check_data({}),
    )


def sign(now: datetime) -> Checkpoint:
    checkpoint_log(now=now)
    checkpoint = newest_checkpoint()
    assert checkpoint is not None
    return checkpoint


def get(path: str, query: str = "", **headers: str) -> Any:
    return Client().get(f"/v1/audit/{path}" + (f"?{query}" if query else ""), headers=headers)


def good(path: str, query: str = "") -> Any:
    answer = get(path, query)
    assert answer.status_code == 200, answer.content
    return answer


def assert_refused(answer: Any, status: int, code: str) -> Any:
    assert (answer.status_code, answer["Content-Type"]) == (status, "application/json")
    body = answer.json()
    assert body["error"] == code
    assert answer["Cache-Control"] == "no-store"
    return body


def event_of(index: int) -> str:
    return str(Leaf.objects.get(leaf_index=index).event_id)


def unbase64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def path_of(texts: list[str]) -> list[bytes]:
    return [unbase64(text) for text in texts]


def opened(note: bytes) -> OpenedCheckpoint:
    return open_checkpoint(
        note, log_keys=[verifier()], witnesses=[WITNESS_KEY], expected_origin=origin()
    )


def cosign(checkpoint: Checkpoint, now: datetime) -> None:
    text = checkpoint.note.rpartition("\n\n")[0] + "\n"
    line = cosign_text(text, name=WITNESS_KEY.name, signer=WITNESS, at=int(now.timestamp())).line
    Cosignature.objects.create(checkpoint=checkpoint, witness=WITNESS_KEY.name, line=line, at=now)
