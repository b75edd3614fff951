"""The log asks witnesses to cosign its checkpoints (c2sp.org/tlog-witness). Which checkpoints, and where lines are kept, is elsewhere.

A witness is a stranger with a key we trust for one thing: whatever it answers is told as an outcome, and none of it
stops the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.errors import InvalidRequestError, NoteError
from agentauth.protocol.log_texts import SIZE_TYPE, AddCheckpoint, parse_size_answer
from agentauth.protocol.notes import (
    Note,
    SignatureType,
    Verifier,
    parse_note,
    parse_signatures,
    parse_vkey,
    verify_signatures,
)
from agentauth.protocol.urls import normalize_url

if TYPE_CHECKING:
    from audit.posting import Answer

# For one request, from the name's resolution to the last byte of the answer; a witness is asked twice at most.
TIMEOUT_SECONDS: Final = 5.0
# Sixteen lines of Ed25519 are 3 kB.
MAX_ANSWER_BYTES: Final = 16_384
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# (first, second) → the path of `verify_consistency` between two sizes of our tree, 0 < first ≤ second.
Consistency = Callable[[int, int], Sequence[bytes]]


class Result(StrEnum):
    """What came of asking one witness."""

    COSIGNED = "cosigned"
    # It cosigned a larger tree than this: a newer checkpoint was sent meanwhile, or our tree was set back.
    AHEAD = "ahead"
    # It saw another tree of the size we have in common, or our proof was wrong: never to be passed over.
    CONTRADICTED = "contradicted"
    # Its latest size changed while it was asked: somebody else sends checkpoints of this log.
    MOVED = "moved"
    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    UNKNOWN_LOG = "unknown_log"
    # Neither a cosignature of the witness's key nor a refusal of the protocol.
    BAD_ANSWER = "bad_answer"
    UNREACHABLE = "unreachable"


_REFUSALS: Final = {
    400: Result.MALFORMED,
    403: Result.UNTRUSTED,
    404: Result.UNKNOWN_LOG,
    422: Result.CONTRADICTED,
}


@dataclass(frozen=True, slots=True)
class Witness:
    """Where a witness takes checkpoints (its submission prefix, without a final slash), and the key of its cosignatures."""

    url: str
    verifier: Verifier


@dataclass(frozen=True, slots=True)
class Outcome:
    """`line` (a signature line with its line feed) and `at` (seconds since 1970) with COSIGNED, else None.

    `size` is that of the latest tree the witness is known to have cosigned, None where it did not say. `detail` is
    for the operator: our own words, and at most a status or the name of an error.
    """

    result: Result
    line: str | None = None
    at: int | None = None
    size: int | None = None
    detail: str = ""


def parse_witness(text: str) -> Witness:
    """Read `vkey url` of one witness. Raises InvalidRequestError: a key of type 0x04, an address that is https or on this host."""
    vkey, _, url = text.partition(" ")
    try:
        verifier = parse_vkey(vkey)
    except NoteError as error:
        raise InvalidRequestError(f"A witness's vkey cannot be read: {error.description}") from None
    if verifier.kind is not SignatureType.COSIGNATURE:
        raise InvalidRequestError(f"The vkey of {verifier.name} is not a witness's.")
    return Witness(_address(url, verifier.name), verifier)


def cosign(note: str, *, witness: Witness, old_size: int, consistency: Consistency) -> Outcome:
    """Ask `witness` to cosign `note`, a checkpoint our log signed; never raises for anything the witness does.

    `old_size` is the size of the latest tree it cosigned, or 0 where we do not know. Where the witness says another
    size, it is asked once more with a proof from there. A line comes back only after the witness's key verified it.
    Raises NoteError where `note` is no checkpoint, and what `consistency` raises.
    """
    asked = parse_note(note)
    size = parse_checkpoint(asked.text).size
    # What we remember of a witness may be wrong; what we have not got, we cannot prove from.
    outcome = _ask(note, asked, witness, min(old_size, size), consistency)
    if outcome.result is Result.MOVED and outcome.size is not None and outcome.size <= size:
        outcome = _ask(note, asked, witness, outcome.size, consistency)
    if outcome.result is Result.MOVED and outcome.size is not None and outcome.size > size:
        return Outcome(Result.AHEAD, size=outcome.size, detail=outcome.detail)
    return outcome


def _ask(note: str, asked: Note, witness: Witness, old_size: int, consistency: Consistency) -> Outcome:
    size = parse_checkpoint(asked.text).size
    path = consistency(old_size, size) if 0 < old_size < size else ()
    body = AddCheckpoint(old_size, tuple(path), note).text
    # Late: the library behind it takes a tenth of a process's start, and few processes ask witnesses.
    from audit.posting import NoAnswerError, post

    # A proxy of the environment has no part in what stays on this host.
    try:
        answer = post(
            f"{witness.url}/add-checkpoint",
            body.encode(),
            through_proxies=not _on_this_host(witness.url),
            seconds=TIMEOUT_SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
        )
    except NoAnswerError as error:
        return Outcome(Result.UNREACHABLE, detail=str(error))
    if answer is None:
        return Outcome(Result.BAD_ANSWER, detail="The answer is too long.")
    try:
        return _read(answer, asked, witness, size)
    except NoteError as error:
        return Outcome(Result.BAD_ANSWER, detail=f"Status {answer.status}: {error.description}")


def _read(answer: "Answer", asked: Note, witness: Witness, size: int) -> Outcome:
    """What an answer says. Raises NoteError where it is not in the form of its status."""
    detail = f"Status {answer.status}."
    if answer.status == HTTPStatus.OK:
        offered = Note(asked.text, parse_signatures(_text(answer.body)))
        for verified in verify_signatures(offered, [witness.verifier]):
            # Zero is no time: such a line says nothing about when.
            if verified.at:
                return Outcome(Result.COSIGNED, verified.signature.line, verified.at, size)
        raise NoteError("No line is by the witness's key.")
    if answer.status == HTTPStatus.CONFLICT:
        if answer.content_type != SIZE_TYPE:
            raise NoteError("The size is of another type.")
        return Outcome(Result.MOVED, size=parse_size_answer(answer.body), detail=detail)
    return Outcome(_REFUSALS.get(answer.status, Result.BAD_ANSWER), detail=detail)


def _address(url: str, name: str) -> str:
    try:
        address = normalize_url(url)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"The address of {name}: {error.description}") from None
    if "?" in url or "#" in url or not (address.startswith("https://") or _on_this_host(address)):
        raise InvalidRequestError(f"The address of {name} is neither https nor on this host, or has a query.")
    return address.removesuffix("/")


def _on_this_host(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise NoteError("The answer is not UTF-8.") from None
