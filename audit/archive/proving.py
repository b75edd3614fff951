"""Proving an archive by itself: the store, the log's keys and what else the log signed are all that is asked, no event of the database."""

import base64
import heapq
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from agentauth.protocol.encoding import timestamp
from agentauth.protocol.errors import ChainError, NoteError
from audit.anchors import Anchor, read_any_anchor
from audit.archive.layout import MANIFESTS, ArchiveError, Line, manifest_key
from audit.archive.reading import prove_segment, read_manifest
from audit.archive.tiles import Tiles
from audit.copies import PREFIX, key_of
from audit.stores import Store
from audit.verification import Verdict


class _Proved(NamedTuple):
    size: int
    root: bytes


def prove_archive(*, store: Store, now: datetime, anchors: Iterable[Anchor] = ()) -> Verdict:
    """Read the whole archive and prove it; the first contradiction ends it. Memory does not grow with it.

    1. The segments follow each other from leaf 0 on, each names the one before, and one of the log's keys signed their
    checkpoints. 2. Each is what `prove_segment` asks. 3. At the size of every checkpoint in the store, and of every one of
    `anchors`, the tree had that checkpoint's root; `anchors` reach no further than the archive. 4. Nothing else stands
    among the manifests. `first_bad` is the first leaf in doubt; size and root are those of the last segment proved. Raises
    TemporarilyUnavailableError where the store does not answer.

    What a key signed that was disabled since has to fit and proves nothing: up to the archive's end a checkpoint by a key
    that counts has to follow, else the archive is not proved from `signed_size` on, and `disabled_at` says why.
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
    """The archive as it is read: a tree that grows, and the checkpoints it has not come to yet."""

    def __init__(self, store: Store, now: datetime, anchors: Iterable[Anchor]) -> None:
        self._store, self._now = store, now
        self._tree = Tiles()
        # So many leaves have a root that a checkpoint says.
        self._agreed = self._signed = 0
        # At so many sizes, and at the last of them.
        self._doubted = self._last_doubted = 0
        self._disabled_at: datetime | None = None
        self._asked = sorted(anchors)
        self._coming = heapq.merge(self._asked, self._kept())
        self._next = next(self._coming, None)

    def segments(self) -> Iterator[_Proved]:
        """Each segment's end, once it is proved."""
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
        """What is left once the segments are at their end."""
        size = self._tree.size
        # 4
        if beyond := next(self._store.keys(MANIFESTS, after=manifest_key(size)), None):
            raise ArchiveError(size, f"The segment of leaf {size} is missing, and {beyond} stands after it.")
        if not size:
            raise ArchiveError(0, f"There is no segment in {self._store!r}.")
        if self._asked and self._asked[-1].size > size:
            last = self._asked[-1]
            raise ArchiveError(
                size, f"The archive ends at leaf {size}, and {last.place} tells of {last.size} events."
            )
        # Those of the store that are newer than the archive are signed, at least.
        deque(self._coming, maxlen=0)

    def _read(self, note: bytes | str, place: str) -> Anchor:
        try:
            return read_any_anchor(note, place=place, now=self._now)
        except NoteError as error:
            raise ArchiveError(self._tree.size, f"{place} is refused: {error.description}") from error

    def _visit(self, line: Line) -> None:
        self._compare(line.index)

    def _compare(self, size: int) -> None:
        """The tree has come to `size` leaves."""
        while self._next is not None and self._next.size <= size:
            if self._next.size == size:
                if self._next.root != self._tree.root():
                    raise ArchiveError(
                        self._agreed,
                        f"The first {size} archived events do not have the root of {self._next.place}.",
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
        """That of an archive in which everything fits."""
        at, signed = self._disabled_at, self._signed
        found = replace(_verdict(proved, None, ""), signed_size=signed, disabled_key_sizes=self._doubted)
        if at is None:
            return found
        found = replace(found, disabled_at=timestamp(at))
        if signed >= proved.size:
            return found
        problem = (
            f"Everything fits, but a key that was disabled on {at:%Y-%m-%d %H:%M} UTC alone signed the events from leaf "
            f"{signed} on. Prove it again once the archive ends at a checkpoint by the next key."
        )
        return replace(found, ok=False, first_bad=signed, problem=problem)

    def _kept(self) -> Iterator[Anchor]:
        """The checkpoints in the store, in order."""
        for key in self._store.keys(PREFIX):
            found = self._read(self._store.get(key) or b"", key)
            if key != key_of(found.size):
                raise ArchiveError(self._tree.size, f"{key} is a checkpoint of {found.size} events.")
            yield found


def _verdict(proved: _Proved, first_bad: int | None, problem: str) -> Verdict:
    return Verdict(
        ok=first_bad is None,
        tree_size=proved.size,
        root_hash=base64.b64encode(proved.root).decode("ascii"),
        first_bad=first_bad,
        problem=problem,
    )
