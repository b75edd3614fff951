"""No migration copies or rewrites the log (up to a billion events), or blocks writers meanwhile.

The first two of `audit` create it, and lock it while it is empty. Later ones may only do what
PostgreSQL does in its catalogue alone, or without blocking writers.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence

import pytest
from django.contrib.postgres.operations import (
    AddConstraintNotValid,
    AddIndexConcurrently,
    RemoveIndexConcurrently,
    ValidateConstraint,
)
from django.db import migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation
from django.db.models.fields import NOT_PROVIDED

from audit.db.trigger_operations import append_only, state_machine

# Fixed: the last migration that runs on an empty log alone.
LAST_THAT_MAY = "0002_squashed_0011_months_and_triggers"
LOG = {"event", "leaf"}
TABLES = re.compile(r"\baudit_(?:event|leaf)\b|\b(?:Event|Leaf)\b|[\"'](?:event|leaf)[\"']")
TRIGGERS = type(append_only("audit_node"))
# An index of a partitioned table is built per partition without blocking writers, and then
# attached.
SQL = re.compile(
    r"\s*(CREATE (UNIQUE )?INDEX CONCURRENTLY |DROP INDEX CONCURRENTLY |CREATE (UNIQUE "
    r")?INDEX \w+ ON ONLY |"
    r"ALTER INDEX \w+ ATTACH PARTITION |ALTER TABLE audit_leaf VALIDATE CONSTRAINT )",
    re.IGNORECASE,
)
BODY = re.compile(r"CREATE (?:OR REPLACE )?FUNCTION [^$]*\$(\w+)\$.*?\$\1\$", re.DOTALL)
HARMLESS = (
    AddConstraintNotValid,
    AddIndexConcurrently,
    RemoveIndexConcurrently,
    ValidateConstraint,
    migrations.RemoveConstraint,
    migrations.AlterModelOptions,
    migrations.AlterModelManagers,
)


def offences(operations: Sequence[Operation]) -> Iterator[str]:
    """Operations that copy or rewrite events or leaves, or lock them longer the more there are."""
    for operation in operations:
        if isinstance(operation, migrations.SeparateDatabaseAndState):
            yield from offences(operation.database_operations)
        elif isinstance(operation, migrations.RunSQL):
            yield from (f"SQL: {sql}" for sql in _statements(operation.sql) if not _harmless(sql))
        elif isinstance(operation, migrations.RunPython):
            if not isinstance(operation, TRIGGERS) and TABLES.search(_source(operation.code)):
                yield f"code: {operation.describe()}"
        elif not _leaves_rows_alone(operation):
            yield operation.describe()


def _source(code: Callable[..., None]) -> str:
    """The whole migration, since its SQL is beside the function; without bodies that do not run."""
    module = inspect.getmodule(code)
    text = inspect.getsource(module if module and ".migrations.0" in module.__name__ else code)
    return BODY.sub("", text)


def _statements(sql: object) -> Iterator[str]:
    parts = sql if isinstance(sql, list | tuple) else str(sql).split(";")
    yield from (part[0] if isinstance(part, tuple) else str(part) for part in parts)


def _harmless(sql: str) -> bool:
    return not TABLES.search(sql) or SQL.match(sql) is not None


def _leaves_rows_alone(operation: Operation) -> bool:
    name = getattr(operation, "model_name_lower", getattr(operation, "name_lower", ""))
    if name not in LOG or isinstance(operation, HARMLESS):
        return True
    if isinstance(operation, migrations.AddField):
        field = operation.field
        plain = field.default is NOT_PROVIDED and field.db_default is NOT_PROVIDED
        return bool(
            field.null
            and plain
            and not getattr(field, "db_index", False)
            and not field.unique
            and not field.is_relation
        )
    return False


def later() -> dict[str, Sequence[Operation]]:
    """The migrations of all our apps that must follow the rule."""
    found = MigrationLoader(None).disk_migrations
    return {
        f"{app}.{name}": migration.operations
        for (app, name), migration in sorted(found.items())
        if app in {"audit", "kms", "registry", "verifier", "approvals"}
        and (app != "audit" or name > LAST_THAT_MAY)
    }


@pytest.mark.parametrize(("name", "operations"), later().items(), ids=list(later()))
def test_no_migration_copies_or_locks_the_log(name: str, operations: Sequence[Operation]) -> None:
    assert name
    assert list(offences(operations)) == []


TEXT = models.TextField(null=True)


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("leaf", "note", models.TextField(default="")),
        migrations.AddField("event", "note", models.TextField(null=True, db_default="x")),
        migrations.AddField("event", "note", models.TextField(null=True, db_index=True)),
        migrations.AlterField("event", "kind", models.TextField()),
        migrations.AddIndex("leaf", models.Index(fields=["link"], name="leaf_link")),
        migrations.AddConstraint("leaf", models.UniqueConstraint(fields=["link"], name="leaf_one")),
        migrations.RemoveField("leaf", "kind"),
        migrations.RenameModel("Leaf", "Blade"),
        migrations.RunSQL("UPDATE audit_leaf SET kind = ''"),
        migrations.RunSQL("SELECT 1; ALTER TABLE audit_event ALTER COLUMN kind TYPE text"),
        migrations.RunSQL([("INSERT INTO aside SELECT * FROM audit_event WHERE id > %s", ["x"])]),
        migrations.RunSQL("CREATE INDEX leaf_link ON audit_leaf (link)"),
        migrations.RunPython(
            lambda apps, _: apps.get_model("audit", "Leaf").objects.update(kind="")
        ),
        migrations.RunPython(
            lambda _, editor: editor.execute("DO $x$ BEGIN DELETE FROM audit_leaf; END $x$")
        ),
        migrations.SeparateDatabaseAndState([migrations.RunSQL("VACUUM FULL audit_leaf")]),
    ],
    ids=lambda each: each.describe()[:40],
)
def test_what_would_copy_or_lock_the_log_is_an_offence(operation: Operation) -> None:
    assert len(list(offences([operation]))) == 1


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("leaf", "note", TEXT),
        AddIndexConcurrently("leaf", models.Index(fields=["link"], name="leaf_link")),
        migrations.RunSQL("CREATE INDEX CONCURRENTLY leaf_link ON audit_leaf (link)"),
        migrations.RunSQL("CREATE INDEX event_actor ON ONLY audit_event (actor_id)"),
        migrations.AddField("segment", "note", models.TextField(default="")),
        migrations.RunPython(migrations.RunPython.noop),
        migrations.RunPython(
            lambda _, editor: editor.execute("CREATE FUNCTION x() AS $x$ TABLE audit_leaf $x$")
        ),
        append_only("audit_leaf"),
        state_machine("audit_segment", "state", transitions={}, initial=["new"]),
    ],
    ids=lambda each: each.describe()[:40],
)
def test_operation_that_does_not_block_writers_is_allowed(operation: Operation) -> None:
    assert list(offences([operation])) == []
