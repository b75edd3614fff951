"""Ask a witness to cosign a checkpoint (c2sp.org/tlog-witness).

`audit.checkpoints.cosigning` keeps the lines.

A witness is an untrusted server: only its cosignature key is trusted. Whatever it answers becomes
an outcome and never an exception, so a witness cannot stop the log.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from agentauth.protocol.checkpoint import parse_checkpoint
from agentauth.protocol.checkpoint_proofs import SIZE_TYPE, AddCheckpoint, parse_size_answer
from agentauth.protocol.errors import InvalidRequestError, NoteError
from agentauth.protocol.signed_notes import (
    Note,
    SignatureType,
    Verifier,
    parse_note,
    parse_signatures,
    parse_vkey,
    verify_signatures,
)
from agentauth.protocol.url_normalization import normalize_url

if TYPE_CHECKING:
    from audit.bounded_http_post import Answer

# For one request, from name resolution to the last byte of the answer; at most two per witness.
TIMEOUT_SECONDS: Final = 5.0
# Ample: sixteen lines of Ed25519 signatures are 3 kB.
MAX_ANSWER_BYTES: Final = 16_384
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})

# (first, second) → the path of `verify_consistency` between two sizes of our tree, 0 < first ≤
# second.
Consistency = Callable[[int, int], Sequence[bytes]]


class Result(StrEnum):
    """The result of asking one witness."""

    COSIGNED = "cosigned"
    # It cosigned a larger tree than this: a newer checkpoint was sent meanwhile, or our tree was
    # set back.
    AHEAD = "ahead"
    # It saw another tree at a common size, or our proof was wrong: callers must never ignore this.
    CONTRADICTED = "contradicted"
    # Its latest size changed between two requests: another client sends checkpoints of this log.
    MOVED = "moved"
    MALFORMED = "malformed"
    UNTRUSTED = "untrusted"
    UNKNOWN_LOG = "unknown_log"
    # Neither a cosignature by the witness's key nor a refusal that the protocol defines.
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
    """A witness's submission prefix (without a final slash) and the key of its cosignatures."""

    url: str
    verifier: Verifier


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, with `line` (including its line feed) and `at` (seconds since 1970) if COSIGNED.

    `size` is that of the latest tree the witness is known to have cosigned; None if it did not say.
    `detail` is for the operator: our own words, with at most a status or the name of an error.
    """

    result: Result
    line: str | None = None
    at: int | None = None
    size: int | None = None
    detail: str = ""


def parse_witness(text: str) -> Witness:
    """Read one witness's `vkey url`.

    Raises InvalidRequestError unless the key has type 0x04 and the address is https or on this
    host.
    """
    vkey, _, url = text.partition(" ")
    try:
        verifier = parse_vkey(vkey)
    except NoteError as error:
        raise InvalidRequestError(f"A witness's vkey cannot be read: {error.description}") from None
    if verifier.kind is not SignatureType.COSIGNATURE:
        raise InvalidRequestError(f"The vkey of {verifier.name} is not the key of a witness.")
    return Witness(_address(url, verifier.name), verifier)


def cosign(note: str, *, witness: Witness, old_size: int, consistency: Consistency) -> Outcome:
    """Ask `witness` to cosign `note`, a checkpoint our log signed; no answer of the witness raises.

    `old_size` is the size of the latest tree it cosigned, or 0 if unknown. If the witness reports
    another size, it is asked once more with a proof from there. A line is returned only if the
    witness's key verifies it. Raises NoteError if `note` is not a checkpoint, and what
    `consistency` raises.
    """
    asked = parse_note(note)
    size = parse_checkpoint(asked.text).size
    # The recorded size may be wrong; we cannot prove consistency from a larger tree than this one.
    outcome = _ask(note, asked, witness, min(old_size, size), consistency)
    if outcome.result is Result.MOVED and outcome.size is not None and outcome.size <= size:
        outcome = _ask(note, asked, witness, outcome.size, consistency)
    if outcome.result is Result.MOVED and outcome.size is not None and outcome.size > size:
        return Outcome(Result.AHEAD, size=outcome.size, detail=outcome.detail)
    return outcome


def _ask(
    note: str, asked: Note, witness: Witness, old_size: int, consistency: Consistency
) -> Outcome:
    size = parse_checkpoint(asked.text).size
    path = consistency(old_size, size) if 0 < old_size < size else ()
    body = AddCheckpoint(old_size, tuple(path), note).text
    # Imported late: httpx takes a tenth of a process's start time, and few processes ask witnesses.
    from audit.bounded_http_post import NoAnswerError, post

    # Do not send requests to this host through the environment's proxy.
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
    """Interpret an answer. Raises NoteError if its body does not fit its status."""
    detail = f"Status {answer.status}."
    if answer.status == HTTPStatus.OK:
        offered = Note(asked.text, parse_signatures(_text(answer.body)))
        for verified in verify_signatures(offered, [witness.verifier]):
            # Skip a line without a time (zero).
            if verified.at:
                return Outcome(Result.COSIGNED, verified.signature.line, verified.at, size)
        raise NoteError("No line is signed with the witness's key.")
    if answer.status == HTTPStatus.CONFLICT:
        if answer.content_type != SIZE_TYPE:
            raise NoteError("The size has the wrong type.")
        return Outcome(Result.MOVED, size=parse_size_answer(answer.body), detail=detail)
    return Outcome(_REFUSALS.get(answer.status, Result.BAD_ANSWER), detail=detail)


def _address(url: str, name: str) -> str:
    try:
        address = normalize_url(url)
    except InvalidRequestError as error:
        raise InvalidRequestError(f"The address of {name}: {error.description}") from None
    if "?" in url or "#" in url or not (address.startswith("https://") or _on_this_host(address)):
        raise InvalidRequestError(
            f"The address of {name} must be https or on this host, and have no query."
        )
    return address.removesuffix("/")


def _on_this_host(url: str) -> bool:
    return urlsplit(url).hostname in _LOOPBACK


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise NoteError("The answer is not UTF-8.") from None
