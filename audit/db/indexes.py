"""A migration operation that adds an index to a table in use."""

from typing import Any

from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor


class AddIndexBesideWriters(AddIndexConcurrently):
    """AddIndexConcurrently that also works on SQLite. Its migration needs `atomic = False`."""

    def database_forwards(
        self, app_label: str, editor: Any, from_state: Any, to_state: Any
    ) -> None:
        if editor.connection.vendor == "postgresql":
            # A concurrent build that timed out behind an open transaction leaves an invalid index:
            # remove it.
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
