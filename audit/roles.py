"""What the serving database role may do on PostgreSQL: everything the services do, and nothing to the log's past."""

from typing import Any

from django.db import connection, transaction

_USUAL = frozenset({"SELECT", "INSERT", "UPDATE", "DELETE"})
# Where the serving role may do less than the usual. TRUNCATE, ALTER and DROP it may do nowhere.
_LESS = {
    "audit_event": {"SELECT", "INSERT"},
    "audit_leaf": {"SELECT", "INSERT"},
    # Deleting an opening is erasure.
    "audit_opening": {"SELECT", "INSERT", "DELETE"},
    "audit_head": {"SELECT", "INSERT", "UPDATE"},
    "django_migrations": {"SELECT"},
}


class RoleError(Exception):
    """The role cannot be bound. Says what to change."""


def grant_serving_role(role: str) -> dict[str, list[str]]:
    """Give `role` exactly the rights the services need; returns table → rights. Needs the owner's connection.

    Safe to run after every migration; one transaction, so that there is no moment at which the role may change
    the log. Raises RoleError where grants would not bind the role: no PostgreSQL, no such role, a superuser, or
    one that owns the tables.
    """
    if connection.vendor != "postgresql":
        raise RoleError("Only PostgreSQL has roles; on SQLite the triggers alone keep the log.")
    quoted = connection.ops.quote_name(role)
    granted = {}
    with transaction.atomic(), connection.cursor() as cursor:
        _refuse_unbindable(cursor, role)
        cursor.execute(f"GRANT USAGE ON SCHEMA public TO {quoted}")
        for table in sorted(connection.introspection.table_names(cursor)):
            rights = sorted(_LESS.get(table, _USUAL))
            name = connection.ops.quote_name(table)
            cursor.execute(f"REVOKE ALL ON {name} FROM {quoted}, PUBLIC")
            cursor.execute(f"GRANT {', '.join(rights)} ON {name} TO {quoted}")
            granted[table] = rights
    return granted


def _refuse_unbindable(cursor: Any, role: str) -> None:
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])
    row = cursor.fetchone()
    if row is None:
        raise RoleError(f"There is no database role {role!r}: create it, with LOGIN and a password, first.")
    if row[0]:
        raise RoleError(
            f"The role {role!r} is a superuser, which no grant binds: serve with an ordinary role."
        )
    cursor.execute(
        "SELECT bool_or(pg_has_role(%s, tableowner, 'MEMBER')) FROM pg_tables WHERE schemaname = 'public'",
        [role],
    )
    if cursor.fetchone()[0]:
        raise RoleError(
            f"The role {role!r} owns the tables, or is a member of the role that does: it could drop the triggers. "
            "Let DATABASE_URL name another role than DATABASE_OWNER_URL."
        )
