"""Whose event a leaf is of and of which kind, in the leaf too, so that a person's or an agent's are found in the log's order."""

from typing import Any

from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.triggers import append_only

_BATCH = 5_000
_TRIGGERS = append_only("audit_leaf", unique=("leaf_index", "event_id"))
# Where an event is gone there is nothing to say; that is verify_audit's to name.
_FILL = """
UPDATE audit_leaf SET agent_id = audit_event.agent_id, human_id = audit_event.human_id, kind = audit_event.kind
FROM audit_event WHERE audit_event.id = audit_leaf.event_id AND leaf_index >= %s AND leaf_index < %s
"""


def fill(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    _TRIGGERS.reverse_code(apps, editor)  # type: ignore[misc]  # it has one
    last = apps.get_model("audit", "Leaf").objects.aggregate(last=models.Max("leaf_index"))["last"]
    with editor.connection.cursor() as cursor:
        for start in range(0, 0 if last is None else last + 1, _BATCH):
            cursor.execute(_FILL, [start, start + _BATCH])


class Migration(migrations.Migration):
    dependencies = [("audit", "0005_partitions")]

    operations = [
        # Undone, it leaves the table as the migration before it: kept.
        migrations.RunPython(migrations.RunPython.noop, _TRIGGERS.code),
        migrations.AddField("leaf", "agent_id", models.UUIDField(null=True)),
        migrations.AddField("leaf", "human_id", models.UUIDField(null=True)),
        migrations.AddField(
            "leaf", "kind", models.CharField(default="", max_length=64), preserve_default=False
        ),
        migrations.RunPython(fill, migrations.RunPython.noop),
        # SQLite made the table anew, and with that dropped its triggers.
        _TRIGGERS,
    ]
