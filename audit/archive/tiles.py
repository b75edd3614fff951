"""The log's tree as static files (c2sp.org/tlog-tiles): full and partial tiles and bundles."""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import TILE_HEIGHT, CompactTree, leaf_hash, node_hash

WIDTH: Final = 1 << TILE_HEIGHT
_GROUP: Final = 1_000


class Tile(NamedTuple):
    """A file of the tree: concatenated hashes, or a bundle of entries."""

    key: str
    data: bytes


class Tiles:
    """A tree that grows entry by entry and returns each file once it is full.

    It can continue from any size: `hashes` are the hashes of each level's incomplete tile, lowest
    level first, and `entries` the entries of the incomplete bundle.
    """

    def __init__(
        self, size: int = 0, hashes: Sequence[Sequence[bytes]] = (), entries: Sequence[bytes] = ()
    ) -> None:
        """Continue a tree. Raises ChainError unless `hashes` and `entries` fit the size."""
        if len(entries) != size % WIDTH or [len(level) for level in hashes] != [
            width for _, width in widths(size)
        ]:
            raise ChainError(f"The stored tree does not have {size} leaves: some were deleted.")
        self.size = size
        self._levels = [list(level) for level in hashes] or [[]]
        self._entries = list(entries)
        self._tree = CompactTree(size, _peaks(self._levels))

    def add(self, entry: bytes) -> list[Tile]:
        """Append a leaf; returns the files it completes."""
        return list(self._add(entry))

    def _add(self, entry: bytes) -> Iterator[Tile]:
        leaf = leaf_hash(entry)
        self._tree.append(leaf)
        self._entries.append(entry)
        self._levels[0].append(leaf)
        self.size += 1
        if len(self._entries) == WIDTH:
            yield self._bundle()
            self._entries.clear()
        level = 0
        while len(hashes := self._levels[level]) == WIDTH:
            yield self._tile(level)
            level += 1
            if level == len(self._levels):
                self._levels.append([])
            self._levels[level].append(_root(hashes))
            hashes.clear()

    def partial(self) -> Iterator[Tile]:
        """The incomplete files, which are stored if the tree ends at its current size."""
        if self._entries:
            yield self._bundle()
        for level, hashes in enumerate(self._levels):
            if hashes:
                yield self._tile(level)

    def root(self) -> bytes:
        """The root of the current tree, 32 bytes."""
        return self._tree.root()

    def _bundle(self) -> Tile:
        data = b"".join(len(entry).to_bytes(2, "big") + entry for entry in self._entries)
        return Tile(tile_key("entries", (self.size - 1) // WIDTH, len(self._entries)), data)

    def _tile(self, level: int) -> Tile:
        hashes = self._levels[level]
        number = ((self.size >> TILE_HEIGHT * level) - 1) // WIDTH
        return Tile(tile_key(str(level), number, len(hashes)), b"".join(hashes))


def tile_key(level: str, number: int, width: int = WIDTH) -> str:
    """`tile/<level>/<number>[.p/<width>]`: groups of three digits, an x before all but the last.

    `level` is a number, or "entries" for a bundle.
    """
    groups = [f"{number % _GROUP:03}"]
    while number := number // _GROUP:
        groups.append(f"x{number % _GROUP:03}")
    return f"tile/{level}/{'/'.join(reversed(groups))}" + ("" if width == WIDTH else f".p/{width}")


def widths(size: int) -> list[tuple[int, int]]:
    """By level, the number and width of the incomplete tile in a tree of `size` leaves.

    The width is 0 where every tile is full.
    """
    found = []
    while size:
        found.append(divmod(size, WIDTH))
        size //= WIDTH
    return found


def _peaks(levels: Sequence[Sequence[bytes]]) -> Iterator[bytes]:
    """The roots of the perfect subtrees that make up the tree, largest first."""
    for hashes in reversed(levels):
        start = 0
        for bit in range(TILE_HEIGHT - 1, -1, -1):
            if len(hashes) >> bit & 1:
                yield _root(hashes[start : start + (1 << bit)])
                start += 1 << bit


def _root(hashes: Sequence[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = [
            node_hash(left, right) for left, right in zip(hashes[::2], hashes[1::2], strict=True)
        ]
    return hashes[0]
