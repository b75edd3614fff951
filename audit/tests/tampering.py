"""Playing the table owner: promises of the database lifted, in a savepoint that never lasts."""

import contextlib
from collections.abc import Iterator
from typing import Any

from django.db import connection, transaction

TABLES = ["audit_event", "audit_leaf", "audit_opening", "audit_queueentry", "audit_head"]


@contextlib.contextmanager
def as_table_owner() -> Iterator[None]:
    """Inside, rows of the log change freely: no trigger, no foreign key. Afterwards all is as it was."""
    with transaction.atomic():
        lift_triggers()
        yield
        transaction.set_rollback(True)


def lift_triggers() -> None:
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Foreign keys wait for the commit, and a table with waiting checks cannot be altered.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            for table in TABLES:
                cursor.execute(f'ALTER TABLE "{table}" DISABLE TRIGGER ALL')
            return
        cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in cursor.fetchall():
            cursor.execute(f'DROP TRIGGER "{name}"')


def execute(sql: str, *parameters: Any) -> int:
    """One statement past the ORM; returns the rows it touched. `%s` takes any value the ORM would."""
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return int(cursor.rowcount)
