"""A decision reads the counters of an agent's grants at a service provider: by index, past requests that were never approved."""

from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# A migration that waited too long for a transaction that was open leaves an index that nothing uses.
_DROP = "DROP INDEX CONCURRENTLY IF EXISTS grant_given"


class _AddIndex(AddIndexConcurrently):
    """On SQLite, which knows no other way, as `AddIndex` does."""

    def database_forwards(
        self, app_label: str, editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        if editor.connection.vendor == "postgresql":
            editor.execute(_DROP)
            super().database_forwards(app_label, editor, from_state, to_state)
        else:
            migrations.AddIndex.database_forwards(self, app_label, editor, from_state, to_state)

    def database_backwards(
        self, app_label: str, editor: BaseDatabaseSchemaEditor, from_state: Any, to_state: Any
    ) -> None:
        if editor.connection.vendor == "postgresql":
            super().database_backwards(app_label, editor, from_state, to_state)
        else:
            migrations.AddIndex.database_backwards(self, app_label, editor, from_state, to_state)


class Migration(migrations.Migration):
    # PostgreSQL builds an index beside writers outside a transaction alone.
    atomic = False
    dependencies = [("registry", "0011_grant_follows_at")]

    operations = [
        _AddIndex(
            "grant",
            models.Index(
                condition=models.Q(("capabilities__isnull", False)),
                fields=["agent", "service_provider"],
                name="grant_given",
            ),
        )
    ]
