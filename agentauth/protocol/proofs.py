"""Which hashes prove inclusion and consistency, and the proofs made of them; where the hashes are kept is the caller's affair."""

from collections.abc import Callable
from typing import Final

from .chain import node_hash
from .encoding import sha256
from .errors import ChainError

# (height, index) → root of the full subtree of 2**height leaves that is number index of its kind; height 0: a leaf hash.
Subtree = Callable[[int, int], bytes]
# Leaves start to end, end not among them.
Leaves = tuple[int, int]
_EMPTY_ROOT: Final = sha256(b"")


def inclusion_nodes(index: int, size: int) -> list[Leaves]:
    """The leaf ranges whose roots prove leaf `index` in the tree of `size` leaves, from the leaf upward (RFC 9162 section 2.1.3.1).

    Raises ChainError for a leaf outside the tree.
    """
    if not 0 <= index < size:
        raise ChainError("The leaf lies outside the tree.")
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


def consistency_nodes(first: int, second: int) -> list[Leaves]:
    """The leaf ranges whose roots prove that the tree of `second` leaves adds to that of `first` (RFC 9162 section 2.1.4.1).

    None for two trees of one size. Raises ChainError where `first` is 0 or larger than `second`: `verify_consistency`
    refuses both.
    """
    if not 0 < first <= second:
        raise ChainError("The sizes are not those of an older and a newer tree.")
    path, start, end = [], 0, second
    while end != first:
        split = _split(start, end)
        if first <= split:
            path.append((split, end))
            end = split
        else:
            path.append((start, split))
            start = split
    # What is left is the newest part of the first tree that is full in both; where it is the whole first tree, the
    # verifier knows it already.
    if start:
        path.append((start, first))
    return path[::-1]


def full_subtrees(start: int, end: int) -> list[tuple[int, int]]:
    """The full subtrees a range of leaves is made of, as (height, index), largest first.

    The range must be one that stands in a tree: `start` a multiple of a power of two that is not smaller than the
    range. Raises ChainError for any other, and for an empty one.
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


def root(size: int, subtree: Subtree) -> bytes:
    """The root of the first `size` leaves; SHA-256 of nothing for none (RFC 9162 section 2.1.1). 32 bytes. Raises ChainError."""
    return range_root((0, size), subtree) if size else _EMPTY_ROOT


def range_root(leaves: Leaves, subtree: Subtree) -> bytes:
    """The root over a range as `full_subtrees` takes it, from the roots of its full subtrees. 32 bytes. Raises ChainError."""
    *larger, smallest = (subtree(height, index) for height, index in full_subtrees(*leaves))
    node = smallest
    for part in reversed(larger):
        node = node_hash(part, node)
    return node


def prove_inclusion(index: int, size: int, subtree: Subtree) -> list[bytes]:
    """The path that `verify_inclusion` takes: hashes of 32 bytes, from the leaf upward. Raises ChainError.

    `subtree` is asked for full subtrees within the first `size` leaves only, each at most once.
    """
    return [range_root(leaves, subtree) for leaves in inclusion_nodes(index, size)]


def prove_consistency(first: int, second: int, subtree: Subtree) -> list[bytes]:
    """The path that `verify_consistency` takes: hashes of 32 bytes. Raises ChainError. `subtree` as in `prove_inclusion`."""
    return [range_root(leaves, subtree) for leaves in consistency_nodes(first, second)]


def _split(start: int, end: int) -> int:
    """Where a range of two leaves or more divides: after the largest power of two that is smaller than it."""
    return start + (1 << ((end - start - 1).bit_length() - 1))
