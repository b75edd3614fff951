"""Stage a segment as local files, made from the database and proved against the leaves."""

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from agentauth.protocol.encoding import canonical_json
from agentauth.protocol.log_hashes import leaf_hash
from audit.archive.archive_format import ArchiveError, Line, StoredObject
from audit.archive.parquet import Writer, row_of
from audit.archive.tiles import Tile, Tiles, widths
from audit.log.event_encoding import COLUMNS, event_body
from audit.log.tree_reader import entries, tile
from audit.models import Event, Leaf

# Events per page: this many are in memory at a time.
PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Staged:
    """The staged files by their key in the store, and the tree's root at the segment's end."""

    root: bytes
    lines: StoredObject
    parquet: StoredObject
    files: dict[str, Path]


def stage(first: int, end: int, folder: Path) -> Staged:
    """Write leaves `first` ≤ index < `end` into `folder`.

    Raises ArchiveError if an event is missing or does not match its leaf: a changed event must not
    be archived.
    """
    lines, parquet, tree = folder / "lines.gz", folder / "parquet", tiles_at(first)
    files: dict[str, Path] = {}

    def keep(tile: Tile) -> None:
        path = files[tile.key] = folder / f"tile-{len(files)}"
        path.write_bytes(tile.data)

    with (
        lines.open("xb") as raw,
        # No file name or time in the gzip header, so that the same lines give the same bytes.
        gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as compressed,
        Writer(parquet) as rows,
    ):
        for line, body in _prove_lines(first, end):
            compressed.write(line.encode())
            rows.add(row_of(line.index, body))
            for full in tree.add(line.entry):
                keep(full)
    for part in tree.partial():
        keep(part)
    stored = StoredObject.of(lines, "lines.gz"), StoredObject.of(parquet, "parquet")
    return Staged(tree.root(), *stored, files | {stored[0].key: lines, stored[1].key: parquet})


def tiles_at(size: int) -> Tiles:
    """The tree of the first `size` leaves, to be extended. Raises ChainError if it has gaps."""
    hashes = [tile(level, number, width) for level, (number, width) in enumerate(widths(size))]
    number, width = divmod(size, 256)
    return Tiles(size, hashes, entries(number, width))


def leaves(first: int, end: int) -> Iterator[Leaf]:
    """Leaves `first` ≤ index < `end` in order, by pages. Raises ArchiveError if one is missing."""
    for start in range(first, end, PAGE):
        stop = min(start + PAGE, end)
        page = list(
            Leaf.objects.filter(leaf_index__gte=start, leaf_index__lt=stop).order_by("leaf_index")
        )
        for index, leaf in zip(range(start, stop), page, strict=False):
            if leaf.leaf_index != index:
                raise ArchiveError(index, f"Leaf {index} is missing: it was deleted.")
            yield leaf
        if len(page) < stop - start:
            raise ArchiveError(
                start + len(page), f"Leaf {start + len(page)} is missing: it was deleted."
            )


def prove(line: Line, leaf: Leaf) -> None:
    """Check the line against its leaf. Raises ArchiveError if they differ."""
    if line.entry != bytes(leaf.entry) or leaf_hash(line.entry) != bytes(leaf.leaf_hash):
        raise ArchiveError(
            line.index, f"The event of leaf {line.index} differs from what the leaf recorded."
        )


def _prove_lines(first: int, end: int) -> Iterator[tuple[Line, dict[str, object]]]:
    page: list[Leaf] = []
    for leaf in leaves(first, end):
        page.append(leaf)
        if len(page) == PAGE or leaf.leaf_index == end - 1:
            yield from _events(page)
            page.clear()


def _events(page: list[Leaf]) -> Iterator[tuple[Line, dict[str, object]]]:
    found = Event.objects.filter(id__in=[leaf.event_id for leaf in page])
    by_id = {event.id: event for event in found.values_list(*COLUMNS, named=True)}
    for leaf in page:
        event = by_id.get(leaf.event_id)
        if event is None:
            raise ArchiveError(
                leaf.leaf_index, f"Event {leaf.event_id} of leaf {leaf.leaf_index} is missing."
            )
        body = event_body(event)
        line = Line(leaf.leaf_index, bytes(event.salt), canonical_json(body))
        prove(line, leaf)
        yield line, body
