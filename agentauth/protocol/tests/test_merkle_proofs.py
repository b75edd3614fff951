"""Proofs made only from full subtrees: every size and every leaf, checked by the verifying half
and by the RFC's own recursion.
"""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.encoding import sha256
from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import CompactTree, node_hash
from agentauth.protocol.merkle_proofs import (
    consistency_nodes,
    full_subtrees,
    inclusion_nodes,
    prove_consistency,
    prove_inclusion,
    range_root,
    tree_root,
    verify_consistency,
    verify_inclusion,
)

LARGEST = 130
LEAVES = [sha256(b"leaf %d" % number) for number in range(LARGEST)]
KNOWN: dict[tuple[int, int], bytes] = {}


def mth(start: int, end: int) -> bytes:
    """RFC 9162 section 2.1.1 as it stands there."""
    if end - start == 0:
        return sha256(b"")
    if end - start == 1:
        return LEAVES[start]
    if (start, end) not in KNOWN:
        split = 1
        while split * 2 < end - start:
            split *= 2
        KNOWN[start, end] = node_hash(mth(start, start + split), mth(start + split, end))
    return KNOWN[start, end]


def storage(size: int) -> Callable[[int, int], bytes]:
    """A store of the full subtrees of a tree of `size` leaves, which returns each once."""
    asked: set[tuple[int, int]] = set()

    def subtree(height: int, index: int) -> bytes:
        assert (height, index) not in asked
        asked.add((height, index))
        start, end = index << height, (index + 1) << height
        assert 0 <= start < end <= size
        return mth(start, end)

    return subtree


def grown() -> Iterator[tuple[int, bytes]]:
    """Each size with its root as the growing tree of the log says it."""
    tree = CompactTree()
    yield 0, tree.root()
    for size, leaf in enumerate(LEAVES, 1):
        tree.append(leaf)
        yield size, tree.root()


def test_a_root_from_full_subtrees_is_that_of_the_growing_tree() -> None:
    for size, expected in grown():
        assert tree_root(size, storage(size)) == expected == mth(0, size)


@pytest.mark.parametrize("size", range(1, LARGEST + 1))
def test_each_leaf_of_each_size_is_proved(size: int) -> None:
    top = mth(0, size)
    for index in range(size):
        path = prove_inclusion(index, size, storage(size))
        verify_inclusion(index, size, LEAVES[index], path, top)
        assert path == [mth(*leaves) for leaves in inclusion_nodes(index, size)]


@pytest.mark.parametrize("second", range(1, LARGEST + 1))
def test_each_older_size_is_proved_consistent(second: int) -> None:
    for first in range(1, second + 1):
        path = prove_consistency(first, second, storage(second))
        verify_consistency(first, second, path, mth(0, first), mth(0, second))
        assert path == [mth(*leaves) for leaves in consistency_nodes(first, second)]
    assert consistency_nodes(second, second) == []


@given(st.integers(1, 2**63 - 1), st.data())
def test_the_largest_trees_need_no_more_hashes_than_their_height(
    size: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, size - 1))
    first = data.draw(st.integers(1, size))
    leaves = sorted([*inclusion_nodes(index, size), (index, index + 1)])
    assert len(leaves) <= (size - 1).bit_length() + 1
    assert len(consistency_nodes(first, size)) <= (size - 1).bit_length() + 1
    # Leaf and siblings are the whole tree, each part once.
    assert [start for start, _ in leaves] == [0, *(end for _, end in leaves[:-1])]
    assert leaves[-1][1] == size
    for start, end in [*leaves, *consistency_nodes(first, size)]:
        assert sum(1 << height for height, _ in full_subtrees(start, end)) == end - start


def test_the_parts_of_a_range_follow_each_other() -> None:
    assert full_subtrees(0, 7) == [(2, 0), (1, 2), (0, 6)]
    assert full_subtrees(4, 7) == [(1, 2), (0, 6)]
    assert full_subtrees(8, 16) == [(3, 1)]
    assert range_root((4, 7), storage(7)) == mth(4, 7)


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (3, 3), (-4, 0), (5, 4), (1, 3), (2, 5), (4, 9)]
)
def test_range_that_is_not_a_tree_node_is_refused(start: int, end: int) -> None:
    with pytest.raises(ChainError):
        full_subtrees(start, end)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (-1, 4), (4, 4), (5, 4), (0, -1)])
def test_a_leaf_outside_the_tree_has_no_proof(index: int, size: int) -> None:
    with pytest.raises(ChainError):
        prove_inclusion(index, size, storage(8))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 4), (-1, 4), (5, 4)])
def test_consistency_proof_requires_an_older_and_a_newer_size(first: int, second: int) -> None:
    with pytest.raises(ChainError):
        prove_consistency(first, second, storage(8))


def test_a_negative_size_has_no_root() -> None:
    with pytest.raises(ChainError):
        tree_root(-1, storage(8))
