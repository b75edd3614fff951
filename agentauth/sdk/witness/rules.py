"""When a witness cosigns and what it answers otherwise (c2sp.org/tlog-witness). Neither HTTP nor files are here."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Final

from agentauth.protocol.chain import verify_consistency
from agentauth.protocol.checkpoint import (
    Checkpoint,
    OpenedCheckpoint,
    cosign_checkpoint,
    open_checkpoint,
    parse_checkpoint,
)
from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import AgentAuthError, ChainError, NoteError, UntrustedNoteError
from agentauth.protocol.keys import Signer
from agentauth.protocol.log_texts import (
    SIZE_TYPE,
    AddCheckpoint,
    format_size_answer,
    parse_add_checkpoint,
)
from agentauth.protocol.notes import (
    MAX_SIGNATURES,
    Note,
    Signature,
    SignatureType,
    Verifier,
    format_note,
    parse_note,
    verify_signatures,
)
from agentauth.sdk.terminal import tell

from .state import Latest, State

_TEXT: Final = "text/plain; charset=utf-8"
_EMPTY_ROOT: Final = sha256(b"")


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to whoever asked."""

    status: HTTPStatus
    body: str
    content_type: str = _TEXT


class RefusedCheckpointError(AgentAuthError):
    """A checkpoint that is not cosigned; `answer` says so in the words of the protocol."""

    code = "checkpoint_refused"

    def __init__(self, status: HTTPStatus, description: str, *, latest: int | None = None) -> None:
        super().__init__(description)
        self.answer = (
            Answer(status, f"{description}\n")
            if latest is None
            else Answer(status, format_size_answer(latest), SIZE_TYPE)
        )


class Witness:
    """One name, one key, the logs it knows, and its memory of them."""

    def __init__(
        self, *, name: str, signer: Signer, logs: Mapping[str, Sequence[Verifier]], state: Path
    ) -> None:
        """`logs` has the trusted keys of each origin, `state` is the file of this very witness. Raises WitnessStateError."""
        self.verifier: Final = Verifier(name, signer.public, SignatureType.COSIGNATURE)
        self._signer, self._logs = signer, logs
        self._state = State(state, vkey=self.verifier.vkey)

    def add_checkpoint(self, body: bytes, *, now: int) -> Answer:
        """Answer one request, `now` in seconds since 1970. Raises TemporarilyUnavailableError where nothing can be kept.

        1. The body is in its one form, else 400. 2. The log is known, else 404. 3. A trusted key of it signed and none
        signed badly, else 403. 4. The old size is not beyond the new one, else 400. 5. The old size is that of the
        latest checkpoint cosigned, else 409 with that size. 6. The trees are consistent, else 422. 7. The new
        checkpoint and our line are on disk. Only then the line is given out.
        """
        try:
            request, opened = self._read(body)
            line = self._cosign(request, opened, now)
        except RefusedCheckpointError as refused:
            return refused.answer
        return Answer(HTTPStatus.OK, line)

    def checkpoint(self, origin_hash: str) -> Answer:
        """The latest checkpoint we cosigned of the log whose origin has this SHA-256, in hex: for whoever watches logs."""
        for origin in self._logs:
            if sha256(origin.encode()).hex() == origin_hash:
                latest = self._state.latest(origin)
                if latest is not None:
                    return Answer(HTTPStatus.OK, latest.note)
        return Answer(HTTPStatus.NOT_FOUND, "No checkpoint of that log was cosigned here.\n")

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
            opened = open_checkpoint(request.checkpoint, log_keys=keys, expected_origin=claimed.origin)
        except UntrustedNoteError as error:
            raise RefusedCheckpointError(HTTPStatus.FORBIDDEN, error.description) from None
        # 4
        if request.old_size > opened.checkpoint.size:
            raise RefusedCheckpointError(
                HTTPStatus.BAD_REQUEST, "The old size is beyond that of the checkpoint."
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
                raise RefusedCheckpointError(HTTPStatus.UNPROCESSABLE_ENTITY, error.description) from None
            line = cosign_checkpoint(checkpoint, name=self.verifier.name, signer=self._signer, at=now)
            return Latest(checkpoint.size, checkpoint.root, self._kept(opened, line))

        # 7
        kept = self._state.swap(checkpoint.origin, follow)
        return parse_note(kept.note).signatures[-1].line

    def _kept(self, opened: OpenedCheckpoint, ours: Signature) -> str:
        """The note with what we verified and what we say, and no stranger's signature."""
        verified = verify_signatures(opened.note, self._logs[opened.checkpoint.origin])
        theirs = list(dict.fromkeys(each.signature for each in verified))
        return format_note(opened.note.text, [*theirs[: MAX_SIGNATURES - 1], ours])


def _tell(latest: Latest | None, checkpoint: Checkpoint, note: Note) -> None:
    """Two signed trees of one size prove that the log misbehaved: both, as one line of JSON for the operator.

    Of a proof that does not fit nothing is said, since anybody can send a bad one with a log's good checkpoint.
    """
    if latest is not None and latest.size == checkpoint.size:
        told = {"split_view": [latest.note, format_note(note.text, note.signatures)]}
        tell(json.dumps(told))


def _check_growth(latest: Latest | None, request: AddCheckpoint, checkpoint: Checkpoint) -> None:
    """Raises ChainError where the checkpoint is not the latest one grown further. The old size is the latest one's."""
    if checkpoint.size == 0 and checkpoint.root != _EMPTY_ROOT:
        raise ChainError("The empty tree has another root.")
    if latest is None or latest.size == 0:
        if request.path:
            raise ChainError("The empty tree needs no proof.")
    else:
        verify_consistency(latest.size, checkpoint.size, request.path, latest.root, checkpoint.root)
