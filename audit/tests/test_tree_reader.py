"""The stored tree equals the one computed from the leaves, however they were added."""

import random
from datetime import datetime

import pytest
from django.db import transaction

from agentauth.protocol.log_hashes import TILE_HEIGHT, CompactTree, Subtree
from audit.log.sequencer import sequence_until_empty
from audit.models import Head, Leaf, Node
from audit.services import record_many
from audit.tests.conftest import MakeEvent
from audit.tests.tampering import as_table_owner
from audit.tests.test_record_many import entry
from audit.verify.verification import verify_log

pytestmark = pytest.mark.django_db
TILE = 2**TILE_HEIGHT


@pytest.fixture
def log(now: datetime, make_event: MakeEvent) -> None:
    """A little more than two tiles, in both kinds of batches and odd sizes."""
    dice, waiting = random.Random(8), 2 * TILE + 20
    while waiting:
        size = min(dice.randint(1, 90), waiting)
        if size < 5:
            for _ in range(size):
                make_event()
            sequence_until_empty(now=now, batch=3)
        else:
            with transaction.atomic():
                record_many([entry() for _ in range(size)], now=now)
        waiting -= size


def test_peaks_and_nodes_are_those_of_the_leaves(log: None) -> None:
    tree, nodes = CompactTree(), list[Subtree]()
    for leaf in Leaf.objects.order_by("leaf_index"):
        tree.append(bytes(leaf.leaf_hash), nodes)
    assert tree.size == 2 * TILE + 20
    assert bytes(Head.objects.get().peaks) == b"".join(tree.peaks)
    stored = Node.objects.order_by("index").values_list("level", "index", "hash")
    assert [(level, index, bytes(hashed)) for level, index, hashed in stored] == [
        (1, node.number, node.root) for node in nodes
    ]
    assert len(nodes) == 2
    assert verify_log().ok


def test_a_changed_or_missing_node_is_named_by_its_first_leaf(log: None) -> None:
    with as_table_owner():
        Node.objects.filter(index=1).update(hash=bytes(32))
        verdict = verify_log()
        assert (verdict.ok, verdict.first_bad) == (False, TILE)
        Node.objects.filter(index=1).delete()
        assert verify_log().first_bad == TILE
