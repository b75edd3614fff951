"""Texts that carry a Merkle proof with a checkpoint: one entry's proof, a request to a witness, and
its answer.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from .checkpoint import OpenedCheckpoint, open_checkpoint, parse_checkpoint, parse_hash, parse_size
from .encoding import b64_decode, b64_encode
from .errors import EncodingError, NoteError
from .merkle_proofs import verify_inclusion
from .signed_notes import Verifier, check_text, parse_note, read_text

# A tree of 2^63 leaves needs no more, and c2sp.org/tlog-witness allows no more.
MAX_HASHES: Final = 63
SIZE_TYPE: Final = "text/x.tlog.size"
_LOG_PROOF: Final = "c2sp.org/tlog-proof@v1"
_INDEX: Final = "index "
_EXTRA: Final = "extra "
_OLD: Final = "old "


@dataclass(frozen=True, slots=True)
class LogProof:
    """A proof that a leaf has number `index` in the tree of `checkpoint`, a signed note kept as
    received (c2sp.org/tlog-proof).

    `path` goes from the leaf upward. `extra` is what the application needs to find the leaf again;
    it is not signed.
    """

    index: int
    path: tuple[bytes, ...]
    checkpoint: str
    extra: bytes | None = None

    @property
    def text(self) -> str:
        """The text of the proof. Raises NoteError if `parse_log_proof` would not read it back."""
        lines = [
            _LOG_PROOF,
            *([] if self.extra is None else [_EXTRA + b64_encode(self.extra)]),
            f"{_INDEX}{self.index}",
        ]
        written = _with_checkpoint(lines, self.path, self.checkpoint)
        if parse_log_proof(written) != self:
            raise NoteError("The log proof cannot be written as text.")
        return written


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A log's request to a witness: cosign `checkpoint` (a signed note as received), which is
    consistent with the tree of `old_size`.
    """

    old_size: int
    path: tuple[bytes, ...]
    checkpoint: str

    @property
    def text(self) -> str:
        """The request body. Raises NoteError if `parse_add_checkpoint` would refuse it."""
        written = _with_checkpoint([f"{_OLD}{self.old_size}"], self.path, self.checkpoint)
        if parse_add_checkpoint(written) != self:
            raise NoteError("The request to a witness cannot be written as text.")
        return written


def parse_log_proof(data: bytes | str) -> LogProof:
    """Read the proof of one entry. Raises NoteError; nothing is verified."""
    lines, checkpoint = _parts(data)
    if lines.pop(0) != _LOG_PROOF:
        raise NoteError("The text is not a log proof.")
    extra = _parse_extra(lines.pop(0)) if lines and lines[0].startswith(_EXTRA) else None
    return LogProof(_number(lines, _INDEX), _hashes(lines), checkpoint, extra)


def verify_log_proof(
    data: bytes | str,
    *,
    leaf: bytes,
    log_keys: Iterable[Verifier],
    witnesses: Iterable[Verifier] = (),
    expected_origin: str,
) -> OpenedCheckpoint:
    """Verify that `leaf` (a leaf hash of 32 bytes) is in the log `expected_origin`; returns the
    checkpoint that commits to it.

    The caller decides how many cosignatures are enough. Raises NoteError and UntrustedNoteError as
    `open_checkpoint`, ChainError if the path does not lead to the signed root.
    """
    proof = parse_log_proof(data)
    opened = open_checkpoint(
        proof.checkpoint, log_keys=log_keys, witnesses=witnesses, expected_origin=expected_origin
    )
    head = opened.checkpoint.head
    verify_inclusion(proof.index, head.size, leaf, proof.path, head.root)
    return opened


def parse_add_checkpoint(data: bytes | str) -> AddCheckpoint:
    """Read the body of add-checkpoint (c2sp.org/tlog-witness).

    Raises NoteError; nothing is verified.
    """
    lines, checkpoint = _parts(data)
    return AddCheckpoint(_number(lines, _OLD), _hashes(lines), checkpoint)


def format_size_answer(size: int) -> str:
    """The body of a witness's 409: the size of the latest checkpoint it cosigned, in type
    SIZE_TYPE.
    """
    return f"{size}\n"


def parse_size_answer(data: bytes | str) -> int:
    """Read the body of a witness's 409. Raises NoteError."""
    return parse_size(check_text(read_text(data))[:-1])


def _with_checkpoint(lines: Sequence[str], path: Iterable[bytes], checkpoint: str) -> str:
    return "\n".join([*lines, *map(b64_encode, path), "", checkpoint])


def _parts(data: bytes | str) -> tuple[list[str], str]:
    """The lines before the first empty line, and the checkpoint after it, a well-formed signed
    note.
    """
    head, divider, checkpoint = check_text(read_text(data)).partition("\n\n")
    if not divider:
        raise NoteError("After the hashes, an empty line and a checkpoint must follow.")
    parse_checkpoint(parse_note(checkpoint).text)
    return head.split("\n"), checkpoint


def _number(lines: list[str], label: str) -> int:
    """Remove the first line, which is `label` and a number, and return the number."""
    line = lines.pop(0) if lines else ""
    if not line.startswith(label):
        raise NoteError(f"A line with {label.strip()} is missing.")
    return parse_size(line.removeprefix(label))


def _hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    if len(lines) > MAX_HASHES:
        raise NoteError(f"A proof may have at most {MAX_HASHES} hashes.")
    return tuple(map(parse_hash, lines))


def _parse_extra(line: str) -> bytes:
    try:
        extra = b64_decode(line.removeprefix(_EXTRA))
    except EncodingError:
        raise NoteError("Extra data must be canonical base64.") from None
    if not extra:
        raise NoteError("The line of extra data must be left out if there is none.")
    return extra
