"""Roots and proofs from the database equal those computed from the leaves."""

from datetime import datetime

import pytest
from django.db import transaction
from pytest_django import DjangoAssertNumQueries

from agentauth.protocol.errors import ChainError
from agentauth.protocol.log_hashes import CompactTree
from agentauth.protocol.merkle_proofs import verify_consistency, verify_inclusion
from audit.log.sequencer import sequence_until_empty
from audit.log.tree_reader import (
    TILE_WIDTH,
    consistency_proof,
    entries,
    inclusion_proof,
    root_at,
    tile,
)
from audit.models import Leaf
from audit.services import record_many
from audit.tests.tampering import as_table_owner
from audit.tests.test_record_many import entry

SIZE = 2 * TILE_WIDTH + 21
pytestmark = pytest.mark.django_db


@pytest.fixture
def roots(now: datetime) -> list[bytes]:
    """The roots of a log of 0 to SIZE leaves, computed leaf by leaf."""
    for start in range(0, SIZE, 100):
        with transaction.atomic():
            record_many([entry() for _ in range(min(100, SIZE - start))], now=now)
    sequence_until_empty(now=now)
    tree = CompactTree()
    found = [tree.root()]
    for leaf in Leaf.objects.order_by("leaf_index").values_list("leaf_hash", flat=True):
        tree.append(bytes(leaf))
        found.append(tree.root())
    return found


def test_every_root_and_a_proof_from_each_size(roots: list[bytes]) -> None:
    hashes = [
        bytes(leaf)
        for leaf in Leaf.objects.order_by("leaf_index").values_list("leaf_hash", flat=True)
    ]
    for size in (1, 2, 3, 7, 255, 256, 257, 300, 511, 512, 513, SIZE):
        assert root_at(size) == roots[size]
        for index in {0, 1, size // 2, size - 1} & set(range(size)):
            verify_inclusion(index, size, hashes[index], inclusion_proof(index, size), roots[size])
        for first in {1, 2, 255, 256, 257, size - 1, size} & set(range(1, size + 1)):
            verify_consistency(
                first, size, consistency_proof(first, size), roots[first], roots[size]
            )


def test_a_proof_reads_each_tile_once(
    roots: list[bytes], django_assert_max_num_queries: DjangoAssertNumQueries
) -> None:
    with django_assert_max_num_queries(4):
        inclusion_proof(300, SIZE)
    with django_assert_max_num_queries(4):
        consistency_proof(300, SIZE)


def test_proof_beyond_the_log_size_is_refused(roots: list[bytes]) -> None:
    for asked in (
        lambda: root_at(SIZE + 1),
        lambda: inclusion_proof(3, SIZE + 1),
        lambda: inclusion_proof(SIZE, SIZE),
        lambda: consistency_proof(SIZE, SIZE + 1),
        lambda: consistency_proof(0, SIZE),
    ):
        with pytest.raises(ChainError):
            asked()


def test_tiles_hold_the_leaves_and_the_roots_of_the_tiles_below(roots: list[bytes]) -> None:
    assert [len(tile(0, number)) for number in range(4)] == [TILE_WIDTH, TILE_WIDTH, 21, 0]
    assert [len(tile(1, number)) for number in range(2)] == [2, 0]
    assert tile(1, 0)[0] == roots[TILE_WIDTH]
    assert tile(0, 1, width=3) == tile(0, 1)[:3]
    assert len(entries(2)) == 21
    assert [len(each) for each in (entries(0)[0], tile(0, 0)[0])] == [32, 32]


def test_a_missing_leaf_ends_its_tile_and_does_not_close_it_up(roots: list[bytes]) -> None:
    with as_table_owner():
        Leaf.objects.filter(leaf_index=TILE_WIDTH + 40).delete()
        assert [len(tile(0, 1)), len(entries(1))] == [40, 40]
        with pytest.raises(ChainError):
            inclusion_proof(TILE_WIDTH + 41, SIZE)
