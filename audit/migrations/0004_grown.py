"""The tree over a log that was there before it: each leaf's entry, the nodes above, and the peaks at the head."""

from collections.abc import Iterator
from typing import Any

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from agentauth.protocol.chain import TILE_HEIGHT, CompactTree, Subtree, leaf_hash
from audit.db.triggers import append_only, when_undone
from audit.log.entries import entry_of

_BATCH = 1000


def grow(apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    Leaf, Node, Head = (apps.get_model("audit", name) for name in ("Leaf", "Node", "Head"))
    if editor.connection.vendor == "postgresql":
        editor.execute('DROP TRIGGER IF EXISTS "audit_leaf_kept" ON "audit_leaf"')
    tree, nodes = CompactTree(), list[Subtree]()
    for leaves in _batches(Leaf.objects.select_related("event").order_by("leaf_index")):
        for leaf in leaves:
            leaf.entry = entry_of(leaf.event)
            # Where an event is no longer what its leaf recorded, the tree stays that of the leaves: verify_audit names it.
            hashed = bytes(leaf.leaf_hash)
            tree.append(hashed if len(hashed) == len(leaf.entry) else leaf_hash(leaf.entry), nodes)
        Leaf.objects.bulk_update(leaves, ["entry"])
    Node.objects.bulk_create(
        (
            Node(level=height // TILE_HEIGHT, index=number, hash=root)
            for height, number, root in nodes
        ),
        batch_size=_BATCH,
    )
    Head.objects.update(peaks=b"".join(tree.peaks))


def _batches(rows: Any) -> Iterator[list[Any]]:
    after = -1
    while leaves := list(rows.filter(leaf_index__gt=after)[:_BATCH]):
        yield leaves
        after = leaves[-1].leaf_index


class Migration(migrations.Migration):
    dependencies = [("audit", "0003_tree")]

    operations = [
        when_undone(append_only("audit_leaf", unique=("leaf_index", "event_id"))),
        when_undone(append_only("audit_opening", deletable=True)),
        migrations.RunPython(grow, migrations.RunPython.noop),
        # SQLite made these tables anew, and with that dropped their triggers.
        append_only("audit_leaf", unique=("leaf_index", "event_id")),
        append_only("audit_opening", deletable=True),
        append_only("audit_node", unique=("id", ("level", "index"))),
        append_only("audit_checkpoint", unique=("size",)),
        append_only("audit_cosignature", unique=("id", ("checkpoint_id", "witness"))),
        append_only("audit_checkpointcopy", unique=("id", ("checkpoint_id", "store"))),
        append_only("audit_segment", unique=("first", "end")),
    ]
