"""When a witness cosigns, and what it answers otherwise (c2sp.org/tlog-witness).

HTTP and files are elsewhere.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from agentauth.protocol.checkpoint import (
    Checkpoint,
    OpenedCheckpoint,
    cosign_checkpoint,
    open_checkpoint,
    parse_checkpoint,
)
from agentauth.protocol.checkpoint_proofs import (
    SIZE_TYPE,
    AddCheckpoint,
    format_size_answer,
    parse_add_checkpoint,
)
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import AgentAuthError, ChainError, NoteError, UntrustedNoteError
from agentauth.protocol.keys import Signer
from agentauth.protocol.merkle_proofs import verify_consistency
from agentauth.protocol.signed_notes import (
    MAX_SIGNATURES,
    Note,
    Signature,
    SignatureType,
    Verifier,
    format_note,
    parse_note,
    verify_signatures,
)
from agentauth.sdk.stderr_output import print_stderr

from .latest_checkpoints import Latest, State

_TEXT: Final = "text/plain; charset=utf-8"
_EMPTY_ROOT: Final = sha256(b"")


@dataclass(frozen=True, slots=True)
class WitnessAnswer:
    """The answer to one request."""

    status: HTTPStatus
    body: str
    content_type: str = _TEXT


class RefusedCheckpointError(AgentAuthError):
    """A checkpoint that is not cosigned; `answer` is the HTTP answer that says why."""

    code = "checkpoint_refused"

    def __init__(self, status: HTTPStatus, description: str, *, latest: int | None = None) -> None:
        super().__init__(description)
        self.answer = (
            WitnessAnswer(status, f"{description}\n")
            if latest is None
            else WitnessAnswer(status, format_size_answer(latest), SIZE_TYPE)
        )


class Witness:
    """One name, one key, the logs it knows, and its memory of them."""

    def __init__(
        self, *, name: str, signer: Signer, logs: Mapping[str, Sequence[Verifier]], state: Path
    ) -> None:
        """`logs` has the trusted keys of each origin, `state` is this witness's file.

        Raises WitnessStateError.
        """
        self.verifier: Final = Verifier(name, signer.public, SignatureType.COSIGNATURE)
        self._signer, self._logs = signer, logs
        self._state = State(state, vkey=self.verifier.vkey)

    def add_checkpoint(self, body: bytes, *, now: int) -> WitnessAnswer:
        """Answer one request; `now` is in seconds since 1970.

        1. The body is well-formed, else 400. 2. The log is known, else 404. 3. A trusted key of the
        log signed and no such signature is bad, else 403. 4. The old size is not beyond the new
        one, else 400. 5. The old size is that of the latest cosigned checkpoint, else 409 with that
        size. 6. The trees are consistent, else 422: otherwise a log could show two histories, each
        cosigned. 7. The new checkpoint and our signature are on disk. Only then is the signature
        sent: after a crash, a forgotten one would allow a second history.

        Raises TemporarilyUnavailableError if the state cannot be stored.
        """
        try:
            request, opened = self._read(body)
            line = self._cosign(request, opened, now)
        except RefusedCheckpointError as refused:
            return refused.answer
        return WitnessAnswer(HTTPStatus.OK, line)

    def checkpoint(self, origin_hash: str) -> WitnessAnswer:
        """The latest cosigned checkpoint of the log whose origin has this SHA-256 (hex), for
        monitors.
        """
        for origin in self._logs:
            if sha256(origin.encode()).hex() == origin_hash:
                latest = self._state.latest(origin)
                if latest is not None:
                    return WitnessAnswer(HTTPStatus.OK, latest.note)
        return WitnessAnswer(HTTPStatus.NOT_FOUND, "No checkpoint of that log was cosigned here.\n")

    def _read(self, body: bytes) -> tuple[AddCheckpoint, OpenedCheckpoint]:
        # 1
        try:
            request = parse_add_checkpoint(body)
            claimed = parse_checkpoint(parse_note(request.checkpoint).text)
        except NoteError as error:
            raise RefusedCheckpointError(HTTPStatus.BAD_REQUEST, error.description) from None
        # 2
        keys = self._logs.get(claimed.origin)
        if keys is None:
            raise RefusedCheckpointError(HTTPStatus.NOT_FOUND, "That log is not known here.")
        # 3
        try:
            opened = open_checkpoint(
                request.checkpoint, log_keys=keys, expected_origin=claimed.origin
            )
        except UntrustedNoteError as error:
            raise RefusedCheckpointError(HTTPStatus.FORBIDDEN, error.description) from None
        # 4
        if request.old_size > opened.checkpoint.size:
            raise RefusedCheckpointError(
                HTTPStatus.BAD_REQUEST, "The old size is greater than that of the checkpoint."
            )
        return request, opened

    def _cosign(self, request: AddCheckpoint, opened: OpenedCheckpoint, now: int) -> str:
        checkpoint = opened.checkpoint

        def follow(latest: Latest | None) -> Latest:
            known = 0 if latest is None else latest.size
            # 5
            if request.old_size != known:
                raise RefusedCheckpointError(
                    HTTPStatus.CONFLICT, "The old size is not the latest one.", latest=known
                )
            # 6
            try:
                _check_growth(latest, request, checkpoint)
            except ChainError as error:
                _tell(latest, checkpoint, opened.note)
                raise RefusedCheckpointError(
                    HTTPStatus.UNPROCESSABLE_ENTITY, error.description
                ) from None
            line = cosign_checkpoint(
                checkpoint, name=self.verifier.name, signer=self._signer, at=now
            )
            return Latest(checkpoint.size, checkpoint.root, self._kept(opened, line))

        # 7
        kept = self._state.swap(checkpoint.origin, follow)
        return parse_note(kept.note).signatures[-1].line

    def _kept(self, opened: OpenedCheckpoint, ours: Signature) -> str:
        """The note with our signature and those we verified; unknown ones are dropped."""
        verified = verify_signatures(opened.note, self._logs[opened.checkpoint.origin])
        theirs = list(dict.fromkeys(each.signature for each in verified))
        return format_note(opened.note.text, [*theirs[: MAX_SIGNATURES - 1], ours])


def _tell(latest: Latest | None, checkpoint: Checkpoint, note: Note) -> None:
    """Report a split view to the operator, as one line of JSON with both notes: two signed trees of
    one size prove that the log misbehaved.

    A proof that does not fit is not reported: anyone can send a bad one with a good checkpoint.
    """
    if latest is not None and latest.size == checkpoint.size:
        told = {"split_view": [latest.note, format_note(note.text, note.signatures)]}
        print_stderr(json.dumps(told))


def _check_growth(latest: Latest | None, request: AddCheckpoint, checkpoint: Checkpoint) -> None:
    """Raises ChainError unless the checkpoint appends to the latest one.

    The old size is the latest one's.
    """
    if checkpoint.size == 0 and checkpoint.root != _EMPTY_ROOT:
        raise ChainError("The empty tree has another root.")
    if latest is None or latest.size == 0:
        if request.path:
            raise ChainError("The empty tree needs no proof.")
    else:
        verify_consistency(latest.size, checkpoint.size, request.path, latest.root, checkpoint.root)
