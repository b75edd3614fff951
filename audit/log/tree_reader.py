"""The stored tree: roots, proofs and tiles, read from leaves and nodes.

`agentauth.protocol.merkle_proofs` decides which hashes a proof needs.
"""

from collections.abc import Iterable, Sequence
from functools import reduce
from operator import or_
from typing import Any, Final

from django.db.models import Q

from agentauth.protocol import merkle_proofs
from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import EMPTY_LINK, TILE_HEIGHT, CompactTree, node_hash
from audit.models import Leaf, Node

TILE_WIDTH: Final = 1 << TILE_HEIGHT


def root_at(size: int) -> bytes:
    """The root of the first `size` leaves, 32 bytes. Raises ChainError if the log is shorter."""
    return merkle_proofs.tree_root(size, _Reader().subtree)


def tree_at(size: int) -> CompactTree:
    """The tree of the first `size` leaves, to extend. Raises ChainError if the log is shorter."""
    read = _Reader().subtree
    parts = merkle_proofs.full_subtrees(0, size) if size else []
    return CompactTree(size, (read(height, index) for height, index in parts))


def inclusion_proof(index: int, size: int) -> list[bytes]:
    """The path from leaf `index` to the root of the first `size` leaves (RFC 9162 section 2.1.3).

    Raises ChainError if the leaf is not among them, or the log is shorter.
    """
    return merkle_proofs.prove_inclusion(index, size, _Reader().subtree)


def inclusion_proofs(indices: Iterable[int], size: int) -> dict[int, list[bytes]]:
    """`inclusion_proof` of several leaves, with one query per level. Raises ChainError."""
    wanted = set(indices)
    reader = _Reader()
    reader.read_ahead({place for index in wanted for place in _tiles_of(index, size)})
    return {index: merkle_proofs.prove_inclusion(index, size, reader.subtree) for index in wanted}


def consistency_proof(first: int, second: int) -> list[bytes]:
    """Proof that the first `second` leaves extend the first `first` (RFC 9162 section 2.1.4).

    Raises ChainError if the log is shorter.
    """
    return merkle_proofs.prove_consistency(first, second, _Reader().subtree)


def tile(level: int, number: int, width: int = TILE_WIDTH) -> list[bytes]:
    """The first `width` hashes of tile `number` of `level` (C2SP tlog-tiles), if so many exist."""
    start = number << TILE_HEIGHT
    if level == 0:
        return _leaves("leaf_hash", start, width)
    nodes = Node.objects.filter(level=level, index__gte=start, index__lt=start + width)
    return _unbroken_prefix(nodes.order_by("index").values_list("index", "hash"), start)


def entries(number: int, width: int = TILE_WIDTH) -> list[bytes]:
    """The entries whose leaf hashes `tile(0, number, width)` returns."""
    return _leaves("entry", number << TILE_HEIGHT, width)


def _leaves(column: str, start: int, width: int) -> list[bytes]:
    leaves = Leaf.objects.filter(leaf_index__gte=start, leaf_index__lt=start + width)
    return _unbroken_prefix(leaves.order_by("leaf_index").values_list("leaf_index", column), start)


def _unbroken_prefix(rows: Iterable[tuple[int, Any]], start: int) -> list[bytes]:
    """The values up to the first gap: past a gap, each value would be taken for its neighbour."""
    return [bytes(value) for place, (index, value) in enumerate(rows, start) if place == index]


def _tiles_of(index: int, size: int) -> set[tuple[int, int]]:
    """The tiles, as (level, number), that the proof of leaf `index` needs."""
    asked: set[tuple[int, int]] = set()

    def note(height: int, number: int) -> bytes:
        level, rest = divmod(height, TILE_HEIGHT)
        asked.add((level, number << rest >> TILE_HEIGHT))
        return EMPTY_LINK

    merkle_proofs.prove_inclusion(index, size, note)
    return asked


class _Reader:
    """Returns roots of full subtrees and reads each tile once; a proof needs only a few tiles."""

    def __init__(self) -> None:
        # For each tile: its hashes, then the roots of pairs of them, of fours, and so on.
        self._tiles: dict[tuple[int, int], list[Sequence[bytes]]] = {}

    def subtree(self, height: int, index: int) -> bytes:
        level, rest = divmod(height, TILE_HEIGHT)
        number, start = divmod(index << rest, TILE_WIDTH)
        if (level, number) not in self._tiles:
            self._tiles[level, number] = _rows(tile(level, number))
        rows, place = self._tiles[level, number], start >> rest
        if rest >= len(rows) or place >= len(rows[rest]):
            raise ChainError("The log is not that long.")
        return rows[rest][place]

    def read_ahead(self, places: Iterable[tuple[int, int]]) -> None:
        """Read these tiles, as (level, number), with one query per level."""
        levels: dict[int, list[int]] = {}
        for level, number in places:
            levels.setdefault(level, []).append(number)
        for level, numbers in levels.items():
            found: dict[int, list[tuple[int, bytes]]] = {number: [] for number in numbers}
            for index, hashed in _hashes(level, numbers):
                found[index >> TILE_HEIGHT].append((index, hashed))
            for number, hashes in found.items():
                self._tiles[level, number] = _rows(_unbroken_prefix(hashes, number << TILE_HEIGHT))


def _hashes(level: int, numbers: Iterable[int]) -> Iterable[tuple[int, bytes]]:
    """The hashes of several tiles of one level with their indices, in order."""
    name = "index" if level else "leaf_index"
    spans = reduce(
        or_,
        (
            Q(**{f"{name}__gte": number << TILE_HEIGHT, f"{name}__lt": (number + 1) << TILE_HEIGHT})
            for number in numbers
        ),
    )
    if level == 0:
        return Leaf.objects.filter(spans).order_by(name).values_list(name, "leaf_hash")
    return Node.objects.filter(spans, level=level).order_by(name).values_list(name, "hash")


def _rows(hashes: Sequence[bytes]) -> list[Sequence[bytes]]:
    rows = [hashes]
    while len(rows[-1]) > 1:
        row = rows[-1]
        # Not strict: a last hash without a partner does not form a full subtree.
        rows.append(
            [node_hash(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
        )
    return rows
