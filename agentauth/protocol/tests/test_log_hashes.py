"""The chain: the formulas of section 9, and proofs that verify only for what they prove."""

import hashlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentauth.protocol.encoding import b64u_encode
from agentauth.protocol.errors import ChainError, EncodingError
from agentauth.protocol.log_hashes import (
    EMPTY_LINK,
    CompactTree,
    Subtree,
    TreeHead,
    entry_hash,
    field_commitment,
    leaf_hash,
    link,
    node_hash,
)
from agentauth.protocol.merkle_proofs import verify_consistency, verify_inclusion

SALT = bytes(range(32))


def leaves(count: int) -> list[bytes]:
    return [leaf_hash(bytes([number])) for number in range(count)]


def naive_root(hashes: list[bytes]) -> bytes:
    """RFC 9162 section 2.1.1, word for word."""
    if not hashes:
        return hashlib.sha256(b"").digest()
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + naive_root(hashes[:split]) + naive_root(hashes[split:])).digest()


def naive_path(index: int, hashes: list[bytes]) -> list[bytes]:
    """RFC 9162 section 2.1.3.1."""
    if len(hashes) == 1:
        return []
    split = 1 << (len(hashes) - 1).bit_length() - 1
    if index < split:
        return [*naive_path(index, hashes[:split]), naive_root(hashes[split:])]
    return [*naive_path(index - split, hashes[split:]), naive_root(hashes[:split])]


def naive_consistency(first: int, hashes: list[bytes], *, whole: bool = True) -> list[bytes]:
    """RFC 9162 section 2.1.4.1."""
    if first == len(hashes):
        return [] if whole else [naive_root(hashes)]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    if first <= split:
        return [*naive_consistency(first, hashes[:split], whole=whole), naive_root(hashes[split:])]
    return [
        *naive_consistency(first - split, hashes[split:], whole=False),
        naive_root(hashes[:split]),
    ]


def test_a_growing_tree_names_each_whole_tile_it_completes() -> None:
    hashes = [leaf_hash(number.to_bytes(2, "big")) for number in range(513)]
    tree, full = CompactTree(), list[Subtree]()
    for leaf in hashes:
        tree.append(leaf, full)
    assert full == [
        Subtree(8, 0, naive_root(hashes[:256])),
        Subtree(8, 1, naive_root(hashes[256:512])),
    ]
    full.clear()
    # One leaf short of 65,536: the tree only needs its peaks to be hashes.
    tree = CompactTree(65_535, hashes[:16])
    tree.append(hashes[16], full)
    assert [(each.height, each.number) for each in full] == [(8, 255), (16, 0)]
    assert full[1].root == tree.root()


def test_an_entry_is_the_hash_of_tag_salt_and_canonical_event() -> None:
    expected = hashlib.sha256(b"agentauth/event/v1\0" + SALT + b'{"a":1,"b":"x"}').digest()
    assert entry_hash({"b": "x", "a": 1}, SALT) == expected
    assert leaf_hash(expected) == hashlib.sha256(b"\0" + expected).digest()


def test_a_commitment_is_the_hash_of_tag_salt_and_canonical_value() -> None:
    expected = hashlib.sha256(b"agentauth/field/v1\0" + SALT + b'"Alice"').digest()
    assert field_commitment("Alice", SALT) == b64u_encode(expected)


def test_a_link_joins_its_forerunner_and_one_leaf() -> None:
    one, two = leaves(2)
    first = hashlib.sha256(b"\2" + bytes(32) + one).digest()
    assert link(EMPTY_LINK, one) == first
    assert link(first, two) == hashlib.sha256(b"\2" + first + two).digest()


@pytest.mark.parametrize("length", [0, 31, 33])
def test_salts_and_hashes_have_one_length(length: int) -> None:
    short = bytes(length)
    for act in (
        lambda: entry_hash({}, short),
        lambda: field_commitment("", short),
        lambda: link(short, bytes(32)),
        lambda: link(bytes(32), short),
        lambda: CompactTree().append(short),
        lambda: CompactTree(1, [short]),
        lambda: verify_inclusion(0, 1, short, [], short),
        lambda: verify_consistency(1, 2, [bytes(32)], short, short),
        lambda: verify_consistency(3, 4, [short], bytes(32), bytes(32)),
    ):
        with pytest.raises(ChainError):
            act()


def test_an_event_without_a_canonical_form_is_refused() -> None:
    with pytest.raises(EncodingError):
        entry_hash({"a": 1.5}, SALT)


def test_the_growing_tree_has_the_roots_of_the_standard() -> None:
    tree, hashes = CompactTree(), leaves(70)
    for count, leaf in enumerate([*hashes, b""]):
        assert tree.head() == TreeHead(count, naive_root(hashes[:count]))
        again = CompactTree(tree.size, tree.peaks)
        assert again.root() == tree.root()
        if leaf:
            tree.append(leaf)


@pytest.mark.parametrize(("size", "peaks"), [(1, 0), (0, 1), (3, 1), (4, 2), (-1, 1)])
def test_a_stored_tree_that_does_not_fit_is_refused(size: int, peaks: int) -> None:
    with pytest.raises(ChainError):
        CompactTree(size, [bytes(32)] * peaks)


def test_every_leaf_of_every_small_tree_is_proved() -> None:
    for size in range(1, 20):
        hashes = leaves(size)
        root = naive_root(hashes)
        for index in range(size):
            path = naive_path(index, hashes)
            verify_inclusion(index, size, hashes[index], path, root)
            refused = [
                (index, size, hashes[index], [*path, bytes(32)], root),
                (index, size, hashes[index], path, bytes(32)),
                (index, size, bytes(32), path, root),
                (size, size, hashes[index], path, root),
                (-1, size, hashes[index], path, root),
                (index, 0, hashes[index], path, root),
            ]
            if path:
                refused.append((index, size, hashes[index], path[:-1], root))
                refused.append((index, size, hashes[index], path[1:], root))
            for wrong in refused:
                with pytest.raises(ChainError):
                    verify_inclusion(*wrong)


def test_every_growth_of_small_trees_is_proved() -> None:
    hashes = leaves(20)
    for second in range(1, 20):
        for first in range(1, second + 1):
            old, new = naive_root(hashes[:first]), naive_root(hashes[:second])
            path = naive_consistency(first, hashes[:second])
            verify_consistency(first, second, path, old, new)
            refused = [
                (first, second, [*path, bytes(32)], old, new),
                (first, second, path, bytes(32), new),
                (first, second, path, old, bytes(32)),
                (0, second, path, old, new),
                (second + 1, second, path, old, new),
            ]
            if path:
                refused.append((first, second, path[:-1], old, new))
                refused.append((first, second, [], old, new))
            for wrong in refused:
                with pytest.raises(ChainError):
                    verify_consistency(*wrong)


@given(st.integers(1, 12), st.integers(0, 11), st.integers(1, 12), st.data())
def test_a_leaf_is_proved_at_its_own_place_only(
    size: int, index: int, claimed: int, data: st.DataObject
) -> None:
    hashes = leaves(12)
    index %= size
    other = data.draw(st.integers(0, size - 1))
    if (other, claimed) == (index, size):
        return
    path = naive_path(index, hashes[:size])
    with pytest.raises(ChainError):
        verify_inclusion(other, claimed, hashes[index], path, naive_root(hashes[:claimed]))


def test_a_path_has_the_length_that_follows_from_the_sizes() -> None:
    # Each of these leads to the root it names; only the length gives it away.
    one, two, three = leaves(3)
    pair = node_hash(one, two)
    acts: list[Callable[[], None]] = [
        lambda: verify_inclusion(0, 2, pair, [], pair),
        lambda: verify_inclusion(0, 1, two, [one], pair),
        lambda: verify_consistency(1, 3, [two], one, pair),
        lambda: verify_consistency(1, 2, [two, three], one, node_hash(pair, three)),
        lambda: verify_consistency(
            1, 2, [two, three], node_hash(three, one), node_hash(three, pair)
        ),
    ]
    for act in acts:
        with pytest.raises(ChainError):
            act()


def test_a_node_is_not_taken_for_a_leaf() -> None:
    left, right = leaves(2)
    entry = left + right
    assert leaf_hash(entry) != naive_root([left, right])
