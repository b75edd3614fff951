"""Prove an archive from the store, the log's keys and other checkpoints; reads no event rows."""

import base64
import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import ChainError, NoteError
from audit.archive.archive_format import MANIFESTS, ArchiveError, Line, manifest_key
from audit.archive.segment_reading import prove_segment, read_manifest
from audit.archive.tiles import Tiles
from audit.checkpoints.checkpoint_copies import PREFIX, key_of
from audit.checkpoints.signed_checkpoint_reading import Anchor, read_any_anchor
from audit.stores import Store
from audit.verify.verification import Verdict


class _Proved(NamedTuple):
    size: int
    root: bytes


def prove_archive(*, store: Store, now: datetime, anchors: Iterable[Anchor] = ()) -> Verdict:
    """Read and prove the whole archive; stop at the first contradiction. Memory use is constant.

    1. The segments are consecutive from leaf 0, each names the previous one, and a key of the log
    signed each checkpoint.
    2. Each segment passes `prove_segment`.
    3. At the size of every checkpoint in the store and of every one of `anchors`, the tree has that
    checkpoint's root; no anchor is beyond the end of the archive.
    4. There are no other manifests.

    `first_bad` is the first leaf in doubt; size and root are those of the last proved segment.
    Raises TemporarilyUnavailableError if the store does not answer.

    A checkpoint that only a disabled key signed must fit but proves nothing: the archive counts as
    proved only up to the last checkpoint by a valid key (`signed_size`), and `disabled_at` gives
    the reason.
    """
    proved = _Proved(0, Tiles().root())
    try:
        archive = _Archive(store, now, anchors)
        for end in archive.segments():
            proved = end
        archive.finish()
    except ChainError as error:
        place = error.place if isinstance(error, ArchiveError) else proved.size
        return _verdict(proved, place, error.description)
    return archive.verdict(proved)


class _Archive:
    """State of the read: the tree so far, and the checkpoints still ahead, by size."""

    def __init__(self, store: Store, now: datetime, anchors: Iterable[Anchor]) -> None:
        self._store, self._now = store, now
        self._tree = Tiles()
        # The size of the last matching checkpoint, and of the last one by a valid key.
        self._agreed = self._signed = 0
        # How many sizes have checkpoints by disabled keys, and the last such size.
        self._doubted = self._last_doubted = 0
        self._disabled_at: datetime | None = None
        self._asked = sorted(anchors)
        self._coming = heapq.merge(self._asked, self._stored_checkpoints())
        self._next = next(self._coming, None)

    def segments(self) -> Iterator[_Proved]:
        """Yield the end of each segment after proving it."""
        previous: bytes | None = None
        while found := read_manifest(self._store, self._tree.size):
            manifest, sha256 = found
            # 1
            key = manifest_key(manifest.first)
            if manifest.previous != (previous and previous.hex()):
                raise ArchiveError(manifest.first, f"{key} does not name the segment before it.")
            anchor = self._read(manifest.checkpoint, f"the checkpoint in {key}")
            # 2, 3
            prove_segment(self._store, manifest, tree=self._tree, visit=self._visit)
            self._compare(manifest.end)
            self._meet(anchor)
            self._agreed = manifest.end
            previous = sha256
            yield _Proved(manifest.end, self._tree.root())

    def finish(self) -> None:
        """The checks that remain after the last segment."""
        size = self._tree.size
        # 4
        if beyond := next(self._store.keys(MANIFESTS, after=manifest_key(size)), None):
            raise ArchiveError(
                size, f"The segment of leaf {size} is missing, but {beyond} follows it."
            )
        if not size:
            raise ArchiveError(0, f"There is no segment in {self._store!r}.")
        if self._asked and self._asked[-1].size > size:
            last = self._asked[-1]
            raise ArchiveError(
                size,
                f"The archive ends at leaf {size}, but {last.place} covers {last.size} events.",
            )
        # For checkpoints newer than the archive, only the signatures can be checked: read them all.
        deque(self._coming, maxlen=0)

    def _read(self, note: bytes | str, place: str) -> Anchor:
        try:
            return read_any_anchor(note, place=place, now=self._now)
        except NoteError as error:
            raise ArchiveError(
                self._tree.size, f"{place} is refused: {error.description}"
            ) from error

    def _visit(self, line: Line) -> None:
        self._compare(line.index)

    def _compare(self, size: int) -> None:
        """Compare the tree, now of `size` leaves, with the checkpoints of that size."""
        while self._next is not None and self._next.size <= size:
            if self._next.size == size:
                if self._next.root != self._tree.root():
                    raise ArchiveError(
                        self._agreed,
                        f"The first {size} archived events do not have the root of "
                        f"{self._next.place}.",
                    )
                self._agreed = size
                self._meet(self._next)
            self._next = next(self._coming, None)

    def _meet(self, anchor: Anchor) -> None:
        if anchor.disabled_at is None:
            self._signed = anchor.size
        else:
            self._doubted += anchor.size != self._last_doubted
            self._last_doubted = anchor.size
            self._disabled_at = max(anchor.disabled_at, self._disabled_at or anchor.disabled_at)

    def verdict(self, proved: _Proved) -> Verdict:
        """The verdict if nothing contradicts."""
        at, signed = self._disabled_at, self._signed
        found = replace(
            _verdict(proved, None, ""), signed_size=signed, disabled_key_sizes=self._doubted
        )
        if at is None:
            return found
        found = replace(found, disabled_at=timestamp(at))
        if signed >= proved.size:
            return found
        problem = (
            f"Everything matches, but only a key that was disabled on {at:%Y-%m-%d %H:%M} UTC "
            f"signed the events from leaf {signed} on. Check the archive again once it ends at a "
            "checkpoint signed by the next key."
        )
        return replace(found, ok=False, first_bad=signed, problem=problem)

    def _stored_checkpoints(self) -> Iterator[Anchor]:
        """The checkpoints in the store, by size."""
        for key in self._store.keys(PREFIX):
            found = self._read(self._store.get(key) or b"", key)
            if key != key_of(found.size):
                raise ArchiveError(
                    self._tree.size, f"{key} is a checkpoint of {found.size} events."
                )
            yield found


def _verdict(proved: _Proved, first_bad: int | None, problem: str) -> Verdict:
    return Verdict(
        ok=first_bad is None,
        tree_size=proved.size,
        root_hash=base64.b64encode(proved.root).decode("ascii"),
        first_bad=first_bad,
        problem=problem,
    )
