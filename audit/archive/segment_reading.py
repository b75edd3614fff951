"""Read a segment from the store and prove every object by its digest and by the tree."""

import gzip
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agentauth.protocol.checkpoint import Checkpoint, parse_checkpoint
from agentauth.protocol.errors import EncodingError, NoteError
from agentauth.protocol.signed_notes import parse_note
from audit.archive.archive_format import ArchiveError, Line, Manifest, StoredObject, manifest_key
from audit.archive.parallel_calls import ParallelCalls
from audit.archive.parquet import ROWS, row_of, same_rows
from audit.archive.scratch import scratch
from audit.archive.tiles import Tile, Tiles
from audit.log.event_encoding import MAX_LINE_BYTES
from audit.models import Segment
from audit.stores import Digest, Store, digest_of


def read_manifest(store: Store, first: int) -> tuple[Manifest, bytes] | None:
    """The manifest of the segment that begins at leaf `first`, and its SHA-256; None if missing.

    Raises ArchiveError if it is malformed.
    """
    data = store.get(manifest_key(first))
    if data is None:
        return None
    return Manifest.parse(data, expected_first=first), digest_of(data)


def noted_manifest(store: Store, segment: Segment) -> Manifest:
    """The manifest of a segment row. Raises ArchiveError if it is missing or was replaced."""
    found = read_manifest(store, segment.first)
    if found is None or found[1] != bytes(segment.manifest_sha256) or found[0].end != segment.end:
        raise ArchiveError(
            segment.first,
            f"{manifest_key(segment.first)} in {store!r} is missing, or differs from the recorded "
            "one.",
        )
    return found[0]


def checkpoint_of(manifest: Manifest) -> Checkpoint:
    """The checkpoint in the manifest; does not check its signature. Raises ArchiveError."""
    try:
        found = parse_checkpoint(parse_note(manifest.checkpoint).text)
    except NoteError as error:
        raise ArchiveError(
            manifest.first,
            f"{manifest_key(manifest.first)} does not contain a checkpoint: {error.description}",
        ) from error
    if (found.origin, found.size) != (manifest.origin, manifest.end):
        raise ArchiveError(
            manifest.first,
            f"{manifest_key(manifest.first)} contains a checkpoint of another log or size.",
        )
    return found


def prove_segment(
    store: Store,
    manifest: Manifest,
    *,
    tree: Tiles,
    visit: Callable[[Line], None] = lambda _line: None,
) -> None:
    """Read back every object of a segment and prove it.

    `tree` must end at the segment's first leaf; the segment's leaves are appended to it.

    1. Lines and Parquet match their digests.
    2. Each line is in order and well-formed; `visit` is called with it before the other checks.
    3. The Parquet file holds the same events.
    4. The stored tiles and entry bundles are those of these lines.
    5. The tree has the root of the manifest's checkpoint.

    Raises ArchiveError, which names the object and the first leaf in doubt.
    """
    checkpoint = checkpoint_of(manifest)
    with scratch() as folder, ParallelCalls() as calls:
        # 1
        lines, parquet = folder / "lines.gz", folder / "parquet"
        download(store, manifest.lines, lines, manifest.first)
        download(store, manifest.parquet, parquet, manifest.first)

        def rows() -> Iterator[dict[str, Any]]:
            # 2
            for line in read_lines(lines, manifest.first, manifest.end):
                visit(line)
                # 4
                for full in tree.add(line.entry):
                    calls.start(_check_tile, store, full, line.index)
                yield _row(line)

        # 3
        for group, same in enumerate(same_rows(parquet, rows())):
            if not same:
                place = min(manifest.first + group * ROWS, manifest.end - 1)
                raise ArchiveError(
                    place,
                    f"{manifest.parquet.key} does not contain the same events from leaf {place} "
                    "on as its lines.",
                )
        for part in tree.partial():
            calls.start(_check_tile, store, part, manifest.end - 1)
    # 5
    if tree.root() != checkpoint.root:
        raise ArchiveError(
            manifest.first,
            f"The events of {manifest_key(manifest.first)} do not lead to the root of its "
            "checkpoint.",
        )


def download(store: Store, wanted: StoredObject, path: Path, place: int) -> None:
    """Copy an object into a new file and check its length and digest.

    Raises ArchiveError for the leaf `place`.
    """
    other = ArchiveError(
        place, f"{wanted.key} in {store!r} is not what its manifest says: it was changed."
    )
    with path.open("xb") as file:
        copy = _Copy(file, wanted.bytes, other)
        there = store.fetch(wanted.key, copy)
    if not there:
        raise ArchiveError(place, f"{wanted.key} is missing from {store!r}.")
    if (copy.digest.length, copy.digest.sha256().hex()) != (wanted.bytes, wanted.sha256):
        raise other


def read_lines(path: Path, first: int, end: int) -> Iterator[Line]:
    """The lines of leaves `first` ≤ index < `end`. Raises ArchiveError for fewer or more lines."""
    index = first
    try:
        with gzip.open(path) as file:
            for index in range(first, end):
                yield Line.parse(file.readline(MAX_LINE_BYTES), expected_index=index)
            if file.read(1):
                raise ArchiveError(end - 1, f"There are more lines after that of leaf {end - 1}.")
    except (OSError, EOFError, zlib.error):
        raise ArchiveError(index, f"The line of leaf {index} cannot be decompressed.") from None


def _row(line: Line) -> dict[str, Any]:
    try:
        return dict(row_of(line.index, line.event()))
    except (LookupError, TypeError, EncodingError):
        raise ArchiveError(
            line.index, f"What is archived as leaf {line.index} is not an event."
        ) from None


def _check_tile(store: Store, wanted: Tile, place: int) -> None:
    if store.get(wanted.key) != wanted.data:
        raise ArchiveError(
            place, f"{wanted.key} in {store!r} is missing, or is not made of the archived events."
        )


class _Copy:
    """Writes to a file and digests; raises at the first byte beyond the expected length."""

    def __init__(self, file: Any, most: int, more: ArchiveError) -> None:
        self.digest, self._file, self._most, self._more = Digest(), file, most, more

    def write(self, data: bytes, /) -> None:
        # Stop at the limit: a planted object must not fill the disk or be read without end.
        if self.digest.length + len(data) > self._most:
            raise self._more
        self._file.write(data)
        self.digest.write(data)
