"""The file outside the database that records how far the log was proved, to continue from there.

The file holds the log's own signed checkpoint. Even the owner of the database cannot forge one that
fits a changed log; an attacker who can write the file can only replace it with another of our
checkpoints. So keep it where neither the serving processes nor the database's owner can write.
"""

import base64
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

from django.conf import settings

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.errors import (
    AgentAuthError,
    InvalidRequestError,
    NoteError,
    UntrustedNoteError,
)
from audit.checkpoints.signed_checkpoint_reading import Anchor, anchor_of, read_anchor
from audit.models import Checkpoint, Event
from audit.verify.verification import START, Part, Point, Proof, Verdict, prove_log

VERSION: Final = 1
# Each older event is checked again once in this many runs.
RUNS: Final = 30


class Round(NamedTuple):
    """Progress of the recheck of older rows: leaf `at` of `end`, and the last event id checked."""

    at: int = 0
    end: int = 0
    event: uuid.UUID | None = None


class Verified(NamedTuple):
    """How far the log was proved, with the signed note for that point."""

    point: Point
    note: str
    round: Round


class Outcome(NamedTuple):
    """The verdict; whether the next run can continue from it; a remark on the file, or ""."""

    verdict: Verdict
    kept: bool
    remark: str


def verify_on(
    *,
    state: Path,
    anchors: Callable[[int], Iterable[Anchor]],
    now: datetime,
    full: bool = False,
    runs: int = RUNS,
) -> Outcome:
    """Check what came after the run that wrote `state`, and one part in `runs` of what came before.

    Without the file, or with `full`, check everything. `anchors(size)` returns what the log signed
    for `size` events or more. If the log is whole and a valid key signed it, `state` is rewritten.
    Raises InvalidRequestError if the file is something else, and what `anchors` raises.
    """
    before, remark = _read(state, now)
    since = before if before is not None and not full else None
    part, following = _plan(since, runs) if since else (None, Round())
    point = since.point if since else START
    proof = prove_log(anchors=anchors(point.size), since=point, again=part)
    if not proof.verdict.ok:
        return Outcome(proof.verdict, kept=False, remark=remark)
    note = _note_of(proof, since, now)
    if proof.point is None or note is None:
        return Outcome(
            proof.verdict,
            kept=False,
            remark=remark
            or f"No valid key has signed the log yet: run `{settings.COMMAND} seal_audit`.",
        )
    try:
        _write(state, Verified(proof.point, note, following))
    except OSError as error:
        return Outcome(
            proof.verdict,
            kept=False,
            remark=f"{state} cannot be written: {error.strerror or error}. Correct that, or name "
            "another file with --state.",
        )
    return Outcome(proof.verdict, kept=True, remark=remark)


def _plan(before: Verified, runs: int) -> tuple[Part, Round]:
    """The part to check again now, and where the next run continues.

    A round covers what was proved when it began. So a changed leaf is checked by the end of the
    next round: within 2 × `runs` runs.
    """
    at, end, event = before.round
    if at >= end:
        at, end = 0, before.point.size
    step = -(-end // runs)
    stop = min(at + step, end)
    events = Event.objects.order_by("pk").values_list("pk", flat=True)
    until = (events.filter(pk__gt=event) if event else events)[step - 1 : step].first()
    return Part(at, stop, event, until), Round(stop, end, until)


def _note_of(proof: Proof, before: Verified | None, now: datetime) -> str | None:
    """The note that signs the proved point, from our rows or from the file."""
    point = proof.point
    if point is None:
        return None
    row = Checkpoint.objects.filter(size=point.size, root=point.root).first()
    if row is not None:
        with suppress(AgentAuthError):
            anchor_of(row, now=now)
            return row.note
    return before.note if before is not None and before.point.size == point.size else None


def _read(state: Path, now: datetime) -> tuple[Verified | None, str]:
    try:
        text = state.read_bytes()
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, f"{state} cannot be read, so everything is checked: {error.strerror}."
    note, link, around = _parse_state(state, text)
    try:
        anchor = read_anchor(note, place=str(state), now=now)
    except UntrustedNoteError:
        return (
            None,
            f"No valid key signed the checkpoint in {state}, so everything is checked.",
        )
    except NoteError as error:
        raise _no_state(state) from error
    return Verified(Point(anchor.size, anchor.root, link), note, around), ""


def _parse_state(state: Path, text: bytes) -> tuple[str, bytes, Round]:
    try:
        value: dict[str, Any] = json.loads(text)
        if value["version"] != VERSION:
            raise ValueError("another version")  # noqa: TRY301 — one place says what is wrong
        link = base64.b64decode(value["link"], validate=True)
        event = uuid.UUID(value["event"]) if value["event"] else None
        around = Round(max(0, int(value["at"])), max(0, int(value["end"])), event)
        return str(value["checkpoint"]), link, around
    except (ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise _no_state(state) from error


def _no_state(state: Path) -> InvalidRequestError:
    return InvalidRequestError(
        f"{state} was not written by verify_audit. Name another file, or remove it for a full "
        "check."
    )


def _write(state: Path, verified: Verified) -> None:
    """Replace the file atomically, readable by its owner only. Raises OSError."""
    point, note, around = verified
    text = canonical_json(
        {
            "version": VERSION,
            "checkpoint": note,
            "link": base64.b64encode(point.link).decode("ascii"),
            "at": around.at,
            "end": around.end,
            "event": str(around.event) if around.event else None,
        }
    )
    descriptor, draft = tempfile.mkstemp(prefix=".audit-verified-", dir=state.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(draft).replace(state)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
