"""Read from the external store the events that a restore lost, and prove them."""

from collections.abc import Callable
from datetime import datetime

from django.conf import settings

from agentauth.protocol.errors import NoteError
from audit.archive.archive_format import ArchiveError, Line
from audit.archive.segment_building import tiles_at
from audit.archive.segment_reading import prove_segment, read_manifest
from audit.checkpoints.checkpoint_copies import PREFIX, ContradictedError, key_of, size_of
from audit.checkpoints.log_breaks import seen_from_log
from audit.checkpoints.signed_checkpoint_reading import Anchor, read_anchor
from audit.models import LogBreak
from audit.stores import Store
from audit.stores.store_factory import store_at


def read_lost(row: LogBreak, *, now: datetime, visit: Callable[[Line], None]) -> Anchor:
    """Call `visit` for each event of the log before the break, from leaf `row.size` on.

    Returns the newest external checkpoint, which proves them. The tree of this database is extended
    by the archived lines and must have the root of the break at `row.size`, and the root of that
    checkpoint at the end. `visit` runs before this is checked: use what it collects only after this
    returns. Needs AUDIT_STORE. Raises ChainError if no signed checkpoint there goes beyond the
    break, the archive does not lead to the newest one, or this database's tree has gaps;
    TemporarilyUnavailableError if the store does not answer.
    """
    before = LogBreak.objects.filter(name__lt=row.name).order_by("name")
    store = seen_from_log(store_at(settings.AUDIT_STORE), list(before))
    newest = _newest(store, row.size, now)
    tree = tiles_at(row.archived)

    def check(line: Line) -> None:
        # Runs before the line joins the tree, which therefore has `row.size` leaves here.
        if line.index == row.size and tree.root() != bytes(row.root):
            raise ArchiveError(
                line.index,
                "The archive in the external store does not continue from the first "
                f"{row.size} events.",
            )
        if line.index >= row.size:
            visit(line)

    while tree.size < newest.size and (found := read_manifest(store, tree.size)) is not None:
        manifest, _ = found
        prove_segment(store, manifest, tree=tree, visit=check)
    if tree.size != newest.size:
        raise ArchiveError(
            tree.size,
            f"The archive in the external store has {tree.size} events, but the newest checkpoint "
            f"there covers {newest.size}.",
        )
    if tree.root() != newest.root:
        raise ArchiveError(
            tree.size, f"The archived events do not have the root of {newest.place}."
        )
    return newest


def _newest(store: Store, size: int, now: datetime) -> Anchor:
    beyond = store.keys(PREFIX, after=key_of(size))
    # Keys sort by size.
    last = max((key for key in beyond if size_of(key) is not None), default=None)
    if last is None:
        raise ContradictedError(
            f"No checkpoint in the external store covers more than {size} events."
        )
    try:
        found = read_anchor(store.get(last) or b"", place=last, now=now)
    except NoteError as error:
        raise ContradictedError(
            f"{last} in the external store is refused: {error.description}"
        ) from error
    # Under a later name, an older checkpoint would hide the events between the two.
    if key_of(found.size) != last:
        raise ContradictedError(
            f"{last} in the external store is a checkpoint of {found.size} events."
        )
    return found
