"""An index that a migration adds to a table in use; nothing else of migrations lives here."""

from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class AddIndexBesideWriters(AddIndexConcurrently):
    """For a migration with `atomic = False`; on SQLite, which knows no other way, as `AddIndex` does."""

    def database_forwards(self, app_label: str, editor: Any, from_state: Any, to_state: Any) -> None:
        if editor.connection.vendor == "postgresql":
            # A migration that waited too long for a transaction that was open leaves an index that nothing uses.
            model = to_state.apps.get_model(app_label, self.model_name)
            editor.remove_index(model, self.index, concurrently=True)
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
