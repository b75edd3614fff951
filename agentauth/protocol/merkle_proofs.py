"""Make and verify inclusion and consistency proofs (RFC 9162). The caller stores the hashes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Final

from .encoding import sha256
from .errors import ChainError
from .log_hashes import check_hash, node_hash

# (height, index) → root of full subtree number `index` of 2**height leaves; height 0 is a leaf
# hash.
Subtree = Callable[[int, int], bytes]
# A range of leaves: start and end, end excluded.
LeafRange = tuple[int, int]
_EMPTY_ROOT: Final = sha256(b"")


def inclusion_nodes(index: int, size: int) -> list[LeafRange]:
    """The leaf ranges whose roots prove leaf `index` in the tree of `size` leaves, from the leaf
    upward (RFC 9162 section 2.1.3.1).

    Raises ChainError for a leaf outside the tree.
    """
    _check_leaf(index, size)
    path, start, end = [], 0, size
    while end - start > 1:
        split = _split(start, end)
        if index < split:
            path.append((split, end))
            end = split
        else:
            path.append((start, split))
            start = split
    return path[::-1]


def consistency_nodes(first: int, second: int) -> list[LeafRange]:
    """The leaf ranges whose roots prove that the tree of `second` leaves appends to that of `first`
    (RFC 9162 section 2.1.4.1), in the order of the RFC's path.

    Empty for two trees of one size. Raises ChainError if `first` is 0 or larger than `second`:
    `verify_consistency` refuses both.
    """
    _check_sizes(first, second)
    path, start, end = [], 0, second
    while end != first:
        split = _split(start, end)
        if first <= split:
            path.append((split, end))
            end = split
        else:
            path.append((start, split))
            start = split
    # The rest, (start, first), is the rightmost full subtree of the first tree, and in both trees.
    # If it is the whole first tree, the verifier has its root already.
    if start:
        path.append((start, first))
    return path[::-1]


def full_subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """The full subtrees that make up a range of leaves, as (height, index), largest first.

    The range must be one node of a tree: `start` is a multiple of a power of two not smaller than
    the range. Raises ChainError for any other range, and for an empty one.
    """
    width = end - start
    if not 0 <= start < end or start & ((1 << (width - 1).bit_length()) - 1):
        raise ChainError("The leaves are not those of one node of a tree.")
    parts = []
    for height in range(width.bit_length() - 1, -1, -1):
        if width >> height & 1:
            parts.append((height, start >> height))
            start += 1 << height
    return parts


def tree_root(size: int, subtree: Subtree) -> bytes:
    """The root of the first `size` leaves; SHA-256 of no bytes for size 0 (RFC 9162 section 2.1.1).

    32 bytes. Raises ChainError.
    """
    return range_root((0, size), subtree) if size else _EMPTY_ROOT


def range_root(leaves: LeafRange, subtree: Subtree) -> bytes:
    """The root of a range that `full_subtrees` accepts. 32 bytes. Raises ChainError."""
    *larger, smallest = (subtree(height, index) for height, index in full_subtrees(*leaves))
    node = smallest
    for part in reversed(larger):
        node = node_hash(part, node)
    return node


def prove_inclusion(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The path for `verify_inclusion`: hashes of 32 bytes, from the leaf upward. Raises ChainError.

    Calls `subtree` only for full subtrees within the first `size` leaves, once each at most.
    """
    return [range_root(leaves, subtree) for leaves in inclusion_nodes(index, size)]


def prove_consistency(first: int, second: int, subtree: Subtree) -> list[bytes]:
    """The path for `verify_consistency`: hashes of 32 bytes. Raises ChainError.

    `subtree` as in `prove_inclusion`.
    """
    return [range_root(leaves, subtree) for leaves in consistency_nodes(first, second)]


def _split(start: int, end: int) -> int:
    """Where a range of two or more leaves splits: after the largest power of two below its size."""
    return start + (1 << ((end - start - 1).bit_length() - 1))


def verify_inclusion(
    index: int, size: int, leaf: bytes, path: Sequence[bytes], root: bytes
) -> None:
    """Verify that `leaf` (a leaf hash) has number `index` in the tree of `size` leaves with `root`
    (RFC 9162 section 2.1.3.2).

    `path` goes from the leaf upward. Raises ChainError.
    """
    _check_leaf(index, size)
    node = check_hash(leaf)
    for sibling, on_left in _climb(index, size - 1, path):
        node = node_hash(sibling, node) if on_left else node_hash(node, sibling)
    if node != root:
        raise ChainError("The inclusion proof does not lead to the root.")


def verify_consistency(
    first: int, second: int, path: Sequence[bytes], first_root: bytes, second_root: bytes
) -> None:
    """Verify that the tree of `second` leaves only appends to that of `first` leaves (RFC 9162
    section 2.1.4.2). Without this, a log could rewrite or drop entries between two signed trees.

    Equal sizes need equal roots and an empty path. An empty first tree is refused: it is consistent
    with every tree, so the proof would show nothing. Raises ChainError.
    """
    _check_sizes(first, second)
    if first == second:
        if path or first_root != second_root:
            raise ChainError("For equal sizes, the roots must be equal and the proof empty.")
        return
    # If the first tree is a full subtree, its proof omits its root.
    hashes = [first_root, *path] if first & (first - 1) == 0 else list(path)
    if not hashes:
        raise ChainError("The consistency proof is empty.")
    position, last = first - 1, second - 1
    # At the levels where the first tree's last node is a right child, the proof has nothing: it
    # starts at that tree's rightmost full subtree.
    while position & 1:
        position, last = position >> 1, last >> 1
    old = new = check_hash(hashes[0])
    for part, on_left in _climb(position, last, hashes[1:]):
        # A left sibling belongs to both trees, a right sibling only to the newer one.
        if on_left:
            old, new = node_hash(part, old), node_hash(part, new)
        else:
            new = node_hash(new, part)
    if old != first_root or new != second_root:
        raise ChainError("The consistency proof does not lead to both roots.")


def _check_leaf(index: int, size: int) -> None:
    if not 0 <= index < size:
        raise ChainError("The leaf lies outside the tree.")


def _check_sizes(first: int, second: int) -> None:
    if not 0 < first <= second:
        raise ChainError("The older tree must have at least 1 leaf, and no more than the newer.")


def _climb(position: int, last: int, path: Sequence[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Yield each hash of a path, and whether it is the left sibling.

    `position` is the index of a node in its level, `last` the index of the level's last node. They
    fix the length of a proof: a path that ends below the root or continues above it is refused.
    Raises ChainError.
    """
    for sibling in path:
        if last == 0:
            raise ChainError("The proof is too long.")
        on_left = bool(position & 1) or position == last
        yield check_hash(sibling), on_left
        if on_left:
            # Without a right sibling, the last node moves up unchanged until it is a right child.
            while not position & 1 and position:
                position, last = position >> 1, last >> 1
        position, last = position >> 1, last >> 1
    if last != 0:
        raise ChainError("The proof is too short.")
