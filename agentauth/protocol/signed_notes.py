"""Signed notes (c2sp.org/signed-note), their keys, and cosignatures of witnesses.

What a checkpoint says is in `checkpoint.py`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from .encoding import b64_decode, b64_encode, b64u_decode, sha256
from .errors import (
    EncodingError,
    InvalidKeyError,
    InvalidSignatureError,
    NoteError,
    UntrustedNoteError,
)
from .keys import PublicKey, Signer, ed25519_public_key

MAX_SIGNATURES: Final = 16
# Room for a text and 16 signatures of the largest kind that witnesses may use (post-quantum, 5 kB).
MAX_NOTE_BYTES: Final = 131_072
MAX_TIMESTAMP: Final = 2**63 - 1
_KEY_ID_BYTES: Final = 4
_TIMESTAMP_BYTES: Final = 8
_SIGNATURE_LINE: Final = "— "
# Of the characters below U+0020 only the line feed is allowed (c2sp.org/signed-note): a carriage
# return or ESC would make the displayed text differ from the signed one. A lone surrogate has no
# bytes to sign.
_FORBIDDEN: Final = re.compile(r"[\x00-\x09\x0b-\x1f\ud800-\udfff]")
_KEY_ID: Final = re.compile(r"[0-9a-f]{8}", re.ASCII)


class SignatureType(IntEnum):
    """What a key signs: the text itself, or that a witness saw it at a time
    (c2sp.org/tlog-cosignature).
    """

    NOTE = 1
    COSIGNATURE = 4


@dataclass(frozen=True, slots=True)
class Verifier:
    """A trusted Ed25519 key under a name.

    The same key for another purpose is another verifier with another key id.
    """

    name: str
    key: PublicKey
    kind: SignatureType = SignatureType.NOTE

    def __post_init__(self) -> None:
        """Raises InvalidKeyError for another type of key, ValueError for a name no note can
        contain.
        """
        if not is_key_name(self.name):
            raise ValueError("a note's key name must not be empty or contain spaces or plus signs")
        if self.key.kty != "OKP":
            raise InvalidKeyError("A verifier key of a signed note must be an Ed25519 key.")

    @property
    def key_id(self) -> bytes:
        """4 bytes of SHA-256 over name, line feed, type and key.

        It only selects a key: anyone can make a key with the same id.
        """
        return sha256(self.name.encode() + b"\n" + self._material)[:_KEY_ID_BYTES]

    @property
    def vkey(self) -> str:
        """`name+key id in hex+base64 of type and key`: the text that others configure to trust this
        key.
        """
        return f"{self.name}+{self.key_id.hex()}+{b64_encode(self._material)}"

    @property
    def _material(self) -> bytes:
        return bytes([self.kind]) + b64u_decode(self.key.x)

    def verify(self, text: str, signature: bytes) -> int | None:
        """Verify the value of a signature line, without its key id.

        Returns a cosignature's time in seconds since 1970 (0: it states none), or None for a note's
        own signature. Raises InvalidSignatureError.
        """
        at = None
        if self.kind is SignatureType.COSIGNATURE:
            at = int.from_bytes(signature[:_TIMESTAMP_BYTES], "big")
            signature = signature[_TIMESTAMP_BYTES:]
            if at > MAX_TIMESTAMP:
                raise InvalidSignatureError("A cosignature's time is out of range.")
        self.key.verify(_message(text, at), signature, alg="EdDSA")
        return at


@dataclass(frozen=True, slots=True)
class Signature:
    """One signature line as received; `value` is what follows the key id."""

    name: str
    key_id: bytes
    value: bytes

    @property
    def line(self) -> str:
        """The line, including its line feed."""
        return f"{_SIGNATURE_LINE}{self.name} {b64_encode(self.key_id + self.value)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A text that ends in a line feed, and its signatures. Nothing is verified yet."""

    text: str
    signatures: tuple[Signature, ...]


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """A verified signature of a trusted key; `at` as `Verifier.verify` returns it."""

    verifier: Verifier
    signature: Signature
    at: int | None


def verifier_key(name: str, key: PublicKey) -> str:
    """The vkey of `key` for notes under `name`.

    Raises InvalidKeyError and ValueError as `Verifier`.
    """
    return Verifier(name, key).vkey


def parse_vkey(text: str) -> Verifier:
    """Read `name+key id+base64` of type 0x01 or 0x04. Raises NoteError.

    The key id must follow from name and key: a wrong one never matches a signature, so the user
    would trust a key that can verify nothing.
    """
    # Base64 may contain further plus signs, names may not.
    name, _, rest = text.partition("+")
    key_id, _, encoded = rest.partition("+")
    try:
        material = b64_decode(encoded)
        verifier = Verifier(name, ed25519_public_key(material[1:]), SignatureType(material[0]))
    except (EncodingError, InvalidKeyError, ValueError, IndexError):
        raise NoteError("A verifier key must be a name, a key id and an Ed25519 key.") from None
    if not _KEY_ID.fullmatch(key_id) or bytes.fromhex(key_id) != verifier.key_id:
        raise NoteError("A verifier key's id does not match its name and key.")
    return verifier


def is_key_name(name: str) -> bool:
    """Can a signature line hold this name: not empty, one line, no white space, no plus sign?"""
    return (
        bool(name)
        and "+" not in name
        and _FORBIDDEN.search(name) is None
        and not any(character.isspace() for character in name)
    )


def check_text(text: str) -> str:
    """Return `text` if a note can hold it: it ends in a line feed and has no forbidden character.

    Raises NoteError.
    """
    if not text.endswith("\n"):
        raise NoteError("A note's text must end with a line feed.")
    if _FORBIDDEN.search(text):
        raise NoteError("A note must not contain a control character.")
    return text


def parse_note(data: bytes | str) -> Note:
    """Read a note of at most MAX_NOTE_BYTES and MAX_SIGNATURES.

    Raises NoteError; nothing is verified.
    """
    note = check_text(read_text(data))
    # Split at the last empty line: the text itself may contain others.
    text, divider, lines = note.rpartition("\n\n")
    if not divider:
        raise NoteError("A note must have an empty line before its signatures.")
    return Note(text + "\n", parse_signatures(lines))


def parse_signatures(lines: str) -> tuple[Signature, ...]:
    """Read one or more signature lines, each ended by a line feed. Raises NoteError.

    They are the end of a note, or what a witness answers.
    """
    found = check_text(lines).split("\n")[:-1]
    if len(found) > MAX_SIGNATURES:
        raise NoteError(f"A note may have at most {MAX_SIGNATURES} signatures.")
    return tuple(_parse_signature(line) for line in found)


def verify_signatures(note: Note, verifiers: Iterable[Verifier]) -> tuple[VerifiedSignature, ...]:
    """The verified signatures by `verifiers`, in the note's order; empty if only unknown keys
    signed.

    A line belongs to a key if name and key id match; others are ignored. A key that signed twice is
    returned twice, so count distinct verifiers. Raises UntrustedNoteError if a known key's
    signature does not verify: the note was tampered with, even if another known key's signature
    does. Raises NoteError if two of `verifiers` share name and key id, since a signature could not
    be matched to one.
    """
    known: dict[tuple[str, bytes], Verifier] = {}
    for verifier in verifiers:
        if known.setdefault((verifier.name, verifier.key_id), verifier) != verifier:
            raise NoteError("Two trusted keys have the same name and the same key id.")
    verified = []
    for signature in note.signatures:
        by = known.get((signature.name, signature.key_id))
        if by is not None:
            verified.append(VerifiedSignature(by, signature, _verify(by, note.text, signature)))
    return tuple(verified)


def sign_text(text: str, *, name: str, signer: Signer) -> Signature:
    """Sign a note's text under `name`.

    Raises NoteError for a text that a note cannot have, ValueError for a name that a note cannot
    contain, InvalidKeyError if the key is not Ed25519, InvalidSignatureError if the signer's
    signature does not verify, and what the signer raises.
    """
    return _sign(check_text(text), Verifier(name, signer.public), None, signer)


def cosign_text(text: str, *, name: str, signer: Signer, at: int) -> Signature:
    """Cosign a checkpoint's text: state under `name` that it was seen consistent at `at`, in
    seconds since 1970 (c2sp.org/tlog-cosignature).

    The caller has checked that `text` is a checkpoint. Raises as `sign_text`, and NoteError for a
    time out of range.
    """
    if not 0 < at <= MAX_TIMESTAMP:
        raise NoteError("A cosignature's time is out of range.")
    return _sign(
        check_text(text), Verifier(name, signer.public, SignatureType.COSIGNATURE), at, signer
    )


def format_note(text: str, signatures: Iterable[Signature]) -> str:
    """Format a note. Raises NoteError for what `parse_note` would not read back."""
    note = Note(text, tuple(signatures))
    written = f"{text}\n{''.join(signature.line for signature in note.signatures)}"
    if parse_note(written) != note:
        raise NoteError(
            "These signatures cannot be read back from a note. Check their names and key ids."
        )
    return written


def read_text(data: bytes | str) -> str:
    """UTF-8 text of at most MAX_NOTE_BYTES bytes. Raises NoteError."""
    try:
        raw = data.encode() if isinstance(data, str) else data
        if len(raw) > MAX_NOTE_BYTES:
            raise NoteError("A note is too long.")
        return raw.decode()
    except UnicodeError:
        raise NoteError("A note must be UTF-8.") from None


def _parse_signature(line: str) -> Signature:
    name, _, encoded = line.removeprefix(_SIGNATURE_LINE).partition(" ")
    if not line.startswith(_SIGNATURE_LINE) or not is_key_name(name):
        raise NoteError("A signature line must be a dash, a name and base64.")
    try:
        value = b64_decode(encoded)
    except EncodingError:
        raise NoteError("A signature must be canonical base64.") from None
    if len(value) <= _KEY_ID_BYTES:
        raise NoteError("A signature must be a key id and at least one more byte.")
    return Signature(name, value[:_KEY_ID_BYTES], value[_KEY_ID_BYTES:])


def _verify(verifier: Verifier, text: str, signature: Signature) -> int | None:
    try:
        return verifier.verify(text, signature.value)
    except InvalidSignatureError:
        raise UntrustedNoteError(f"The signature of {verifier.name} does not verify.") from None


def _sign(text: str, verifier: Verifier, at: int | None, signer: Signer) -> Signature:
    value = signer.sign(_message(text, at))
    if at is not None:
        value = at.to_bytes(_TIMESTAMP_BYTES, "big") + value
    # The signer may be a remote service, so check its signature before anyone relies on it.
    verifier.verify(text, value)
    return Signature(verifier.name, verifier.key_id, value)


def _message(text: str, at: int | None) -> bytes:
    # Without this header, a cosignature could pass for a log's own signature. With it, no text is
    # both: the second line of a checkpoint is a size, never a time.
    header = "" if at is None else f"cosignature/v1\ntime {at}\n"
    return (header + text).encode()
