"""Signed checkpoints from the database, from stores and from files: a check must pass through them.

A key is valid here unless it was disabled.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, cast

from django.conf import settings
from django.utils.module_loading import import_string

from agentauth.protocol.checkpoint import open_checkpoint, parse_checkpoint
from agentauth.protocol.errors import InvalidKeyError, NoteError, UntrustedNoteError
from agentauth.protocol.keys import PublicKey
from agentauth.protocol.signed_notes import Verifier, parse_note
from audit.checkpoints.checkpoint_copies import (
    PREFIX,
    ContradictedError,
    key_of,
    name_of,
    size_of,
    store_left_behind,
)
from audit.checkpoints.log_breaks import seen_store
from audit.checkpoints.signer_lookup import PURPOSE
from audit.models import Checkpoint, CheckpointCopy


class Anchor(NamedTuple):
    """The log signed that its first `size` leaves have this root; `place` says where this was read.

    If `disabled_at` is set, only a key disabled at that time signed it, so it is not `vouched` for.
    Anyone with that key can have written it, so it proves nothing, but it must still fit the log.
    """

    size: int
    root: bytes
    place: str
    disabled_at: datetime | None = None

    @property
    def vouched(self) -> bool:
        """Whether a valid key signed it."""
        return self.disabled_at is None


def read_anchor(note: bytes | str, *, place: str, now: datetime) -> Anchor:
    """Read a checkpoint note. Raises NoteError, or UntrustedNoteError without a valid signature."""
    keys = cast(
        "Mapping[str, PublicKey]", import_string(settings.AUDIT_KEYS)(purpose=PURPOSE, now=now)
    )
    return _open(note, place, keys.values())


def anchor_of(row: Checkpoint, *, now: datetime) -> Anchor:
    """The anchor of a checkpoint row.

    Raises ContradictedError if the row differs from its note, or no valid log key signed the note.
    """
    return _of_row(row, now, read_anchor)


def any_anchor_of(row: Checkpoint, *, now: datetime) -> Anchor:
    """As `anchor_of`, but also accepts a note that only a disabled key signed."""
    return _of_row(row, now, read_any_anchor)


def _of_row(row: Checkpoint, now: datetime, opens: Callable[..., Anchor]) -> Anchor:
    said = Anchor(row.size, bytes(row.root), "")
    return _read(row.note, f"the checkpoint of {row.size} events", now, said, opens)


def stored_anchors(
    *, now: datetime, since: int = 0, others: Sequence[str] = ()
) -> Iterator[Anchor]:
    """The anchors of `since` events or more: from the database, then from the external stores.

    The stores are those of `read_stores` and the URIs in `others`. Anchors that only a disabled key
    signed are included. Raises ContradictedError for a checkpoint that no key of the log ever
    signed, TemporarilyUnavailableError if a store does not answer.
    """
    for row in Checkpoint.objects.filter(size__gte=since).order_by("size").iterator():
        yield any_anchor_of(row, now=now)
    for uri in dict.fromkeys([*read_stores(), *others]):
        store = seen_store(uri)
        for key in store.keys(PREFIX, after=key_of(since - 1) if since else ""):
            if size_of(key) is None:
                continue
            where = "outside" if uri == settings.AUDIT_STORE else f"in {store!r}"
            yield _read(store.get(key) or b"", f"{key} {where}", now, None, read_any_anchor)


def read_stores() -> list[str]:
    """The stores that a check always reads: AUDIT_STORE, and the newest copy's if it is another."""
    left = store_left_behind()
    kind, _, options = settings.AUDIT_STORE.partition("?")
    if left and options and kind.partition(":")[0] == left.partition(":")[0]:
        # Rows store a URI without its options; assume those of the current store.
        left = f"{left}?{options}"
    return [uri for uri in (settings.AUDIT_STORE, left) if uri]


def stores_not_read(others: Sequence[str] = ()) -> list[str]:
    """The names of stores with copies that are in neither `read_stores` nor `others`."""
    read = {name_of(uri) for uri in [*read_stores(), *others]}
    there = CheckpointCopy.objects.order_by("store").values_list("store", flat=True).distinct()
    return [name for name in there if name not in read]


def _read(
    note: bytes | str, place: str, now: datetime, said: Anchor | None, opens: Callable[..., Anchor]
) -> Anchor:
    try:
        anchor = opens(note, place=place, now=now)
    except NoteError as error:
        raise ContradictedError(f"{place} was changed: {error.description}") from error
    if said is not None and anchor[:2] != said[:2]:
        raise ContradictedError(f"{place} differs from its note: it was changed.")
    return anchor


def read_any_anchor(note: bytes | str, *, place: str, now: datetime) -> Anchor:
    """As `read_anchor`, but tries the disabled keys if no valid key signed the note."""
    try:
        return read_anchor(note, place=place, now=now)
    except UntrustedNoteError:
        disabled = cast(
            "Mapping[str, tuple[PublicKey, datetime]]",
            import_string(settings.AUDIT_DISABLED_KEYS)(purpose=PURPOSE, now=now),
        )
        anchor = _open(note, place, [key for key, _at in disabled.values()])
        # Several disabled keys may have signed it: it was valid until the last one was disabled.
        at = max(at for key, at in disabled.values() if _signed_by(note, key))
        place = f"{place} (signed by a key that was disabled on {at:%Y-%m-%d %H:%M} UTC)"
        return anchor._replace(place=place, disabled_at=at)


def _signed_by(note: bytes | str, key: PublicKey) -> bool:
    try:
        _open(note, "", [key])
    except UntrustedNoteError:
        return False
    return True


def _open(note: bytes | str, place: str, keys: Iterable[PublicKey]) -> Anchor:
    # The log may have had another name, so take the note's own origin: the signing key decides.
    origin = parse_checkpoint(parse_note(note).text).origin
    try:
        verifiers = [Verifier(origin, key) for key in keys if key.kty == "OKP"]
    except (ValueError, InvalidKeyError):
        raise NoteError("The checkpoint's log has a name that no key can have.") from None
    opened = open_checkpoint(note, log_keys=verifiers, expected_origin=origin)
    return Anchor(opened.checkpoint.size, opened.checkpoint.root, place)
