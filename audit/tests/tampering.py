"""Act as the tables' owner: lift the database's protections, and restore them."""

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connection, transaction

_FROM_MIGRATIONS = {"django_migrations", "django_content_type", "auth_permission"}


@contextlib.contextmanager
def as_table_owner() -> Iterator[None]:
    """Lift all triggers and foreign keys on rows of the log; undo every change at the end."""
    with transaction.atomic():
        if connection.vendor == "postgresql":
            # Deferred foreign keys have pending checks, and such a table cannot be altered.
            execute("SET CONSTRAINTS ALL IMMEDIATE")
        with triggers_lifted("ALL"):
            yield
            transaction.set_rollback(True)


@contextlib.contextmanager
def triggers_lifted(which: str = "USER") -> Iterator[None]:
    """Disable our triggers; on PostgreSQL, `which` may be ALL, which also disables foreign keys."""
    if connection.vendor == "postgresql":
        tables = _column("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        lift = [f'ALTER TABLE "{table}" DISABLE TRIGGER {which}' for table in tables]
        restore = [f'ALTER TABLE "{table}" ENABLE TRIGGER {which}' for table in tables]
    else:
        restore = _column("SELECT sql FROM sqlite_master WHERE type = 'trigger'")
        lift = [
            f'DROP TRIGGER "{name}"'
            for name in _column("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        ]
    for statement in lift:
        execute(statement)
    yield
    if not (connection.in_atomic_block and connection.needs_rollback):
        for statement in restore:
            execute(statement)


def empty_tables() -> None:
    """Delete all rows except those of migrations.

    Django's flush recreates those, which takes longer than many tests.
    """
    names = [
        connection.ops.quote_name(name)
        for name in connection.introspection.table_names()
        if name not in _FROM_MIGRATIONS
    ]
    deletes = [f"DELETE FROM {name}" for name in names]  # noqa: S608 — names of tables, quoted
    if connection.vendor == "postgresql":
        # Without triggers and foreign keys, all in one message.
        execute(
            "; ".join(
                [
                    "SET session_replication_role = replica",
                    *deletes,
                    "RESET session_replication_role",
                ]
            )
        )
        return
    with triggers_lifted(), connection.constraint_checks_disabled(), transaction.atomic():
        for statement in deletes:
            execute(statement)


def execute(sql: str, *parameters: Any) -> int:
    """Run one statement outside the ORM; returns the number of affected rows."""
    with connection.cursor() as cursor:
        # None, not an empty list: only then is % a plain character.
        cursor.execute(sql, parameters or None)
        return int(cursor.rowcount)


def _column(sql: str) -> list[str]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return [row[0] for row in cursor.fetchall()]
