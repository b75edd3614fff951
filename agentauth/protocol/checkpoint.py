"""Checkpoints (c2sp.org/tlog-checkpoint): what a log signs about its tree and witnesses cosign."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .encoding import b64_decode, b64_encode
from .errors import EncodingError, NoteError, UntrustedNoteError
from .keys import Signer
from .log_hashes import HASH_BYTES, TreeHead
from .signed_notes import (
    Note,
    Signature,
    SignatureType,
    VerifiedSignature,
    Verifier,
    check_text,
    cosign_text,
    format_note,
    is_key_name,
    parse_note,
    sign_text,
    verify_signatures,
)

# Sizes and indexes are stored in PostgreSQL, as bigint.
MAX_SIZE: Final = 2**63 - 1
_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The log named `origin` had `size` leaves with `root` (32 bytes).

    `extensions` are further lines. Our own logs add none; those of other logs are kept, signed and
    not interpreted.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises NoteError unless `parse_checkpoint(self.text)` would give this checkpoint."""
        lines = (self.origin, *self.extensions)
        if not all(lines) or any("\n" in line for line in lines):
            raise NoteError("A checkpoint's origin and extensions must be non-empty single lines.")
        check_text("".join(lines) + "\n")
        if not 0 <= self.size <= MAX_SIZE:
            raise NoteError("A checkpoint's size is out of range.")
        if len(self.root) != HASH_BYTES:
            raise NoteError("A checkpoint's root must be 32 bytes.")

    @property
    def text(self) -> str:
        """The note text: at least three lines, each ended by a line feed."""
        lines = (self.origin, str(self.size), b64_encode(self.root), *self.extensions)
        return "\n".join(lines) + "\n"

    @property
    def head(self) -> TreeHead:
        """Size and root."""
        return TreeHead(self.size, self.root)


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint signed by a trusted key of its log, with cosignatures of trusted witnesses."""

    checkpoint: Checkpoint
    note: Note
    cosignatures: tuple[VerifiedSignature, ...]


def parse_checkpoint(text: str) -> Checkpoint:
    """Read a note's text as a checkpoint. Raises NoteError. Nothing is verified."""
    lines = check_text(text).split("\n")[:-1]
    if len(lines) < 3:  # noqa: PLR2004 - origin, size, root
        raise NoteError("A checkpoint must have at least three lines.")
    origin, size, root, *extensions = lines
    return Checkpoint(origin, parse_size(size), parse_hash(root), tuple(extensions))


def open_checkpoint(
    data: bytes | str,
    *,
    log_keys: Iterable[Verifier],
    witnesses: Iterable[Verifier] = (),
    expected_origin: str,
) -> OpenedCheckpoint:
    """Read and verify a signed checkpoint of the log `expected_origin`.

    1. The note is in canonical form. 2. It is a checkpoint of that log: one key may sign for
    several logs, and a tree of another log proves nothing about this one. 3. Every signature by a
    key in `log_keys` or `witnesses` verifies; signatures by other keys are ignored. 4. A key in
    `log_keys` signed it: a witness alone cannot speak for a log. Keys of the wrong type in either
    list never match. The caller decides how many cosignatures are enough.

    Raises NoteError and UntrustedNoteError.
    """
    # 1, 2
    note = parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != expected_origin:
        raise UntrustedNoteError("The checkpoint belongs to another log.")
    # 3
    signing_keys = [key for key in log_keys if key.kind is SignatureType.NOTE]
    witness_keys = [key for key in witnesses if key.kind is SignatureType.COSIGNATURE]
    verified = verify_signatures(note, [*signing_keys, *witness_keys])
    # 4
    if not any(each.verifier.kind is SignatureType.NOTE for each in verified):
        raise UntrustedNoteError("No trusted key of the log signed the checkpoint.")
    return OpenedCheckpoint(
        checkpoint, note, tuple(each for each in verified if each.at is not None)
    )


def sign_checkpoint(checkpoint: Checkpoint, *, signer: Signer) -> str:
    """Sign a checkpoint as its log.

    Raises NoteError for an origin that cannot name a key, and what `sign_text` raises.
    """
    if not is_key_name(checkpoint.origin):
        raise NoteError(
            "The origin cannot name a key: it must not contain white space or a plus sign."
        )
    signature = sign_text(checkpoint.text, name=checkpoint.origin, signer=signer)
    return format_note(checkpoint.text, [signature])


def cosign_checkpoint(checkpoint: Checkpoint, *, name: str, signer: Signer, at: int) -> Signature:
    """Sign the whole text, extensions included, as the witness `name`; `at` is in seconds since
    1970. Returns the signature for a line of the note.

    By signing, the witness states that this is the largest tree of the log it has seen, and that it
    is consistent with every earlier one it has seen. Raises NoteError for a time out of range, and
    what `sign_text` raises.
    """
    return cosign_text(checkpoint.text, name=name, signer=signer, at=at)


def parse_size(text: str) -> int:
    """Read an index or size: ASCII decimal, no leading zero, at most 2^63 − 1. Raises NoteError."""
    if not _DECIMAL.fullmatch(text) or (size := int(text)) > MAX_SIZE:
        raise NoteError("A number must be decimal without leading zeros, at most 2^63 - 1.")
    return size


def parse_hash(text: str) -> bytes:
    """32 bytes in standard base64. Raises NoteError."""
    try:
        value = b64_decode(text)
    except EncodingError:
        raise NoteError("A hash must be canonical base64.") from None
    if len(value) != HASH_BYTES:
        raise NoteError("A hash must be 32 bytes.")
    return value
