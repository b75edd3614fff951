"""Gives PostgreSQL roles exactly their rights (`role_rights`), and guards that go beyond rights."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.db import connection, transaction

from audit import kinds
from audit.db.partition_creation import AHEAD
from audit.db.role_rights import CALLABLE, NEEDS, Rights, beyond_tables

# The kinds of events that verifier processes write; any other would record an act that is not
# theirs.
_VERIFIER_KINDS: Final = (
    kinds.AGENT_KEY_BARRED,
    kinds.AGENT_REVOKED,
    kinds.CLOCK_OFF,
    kinds.CONFIRMATION_EXPIRED,
    kinds.CONFIRMATION_REQUESTED,
    kinds.DECISION_ALLOWED,
    kinds.DECISION_DENIED,
    kinds.DECISION_REHEARSED,
    kinds.DECISION_REPEATED,
    kinds.GRANT_WITHDRAWN,
    kinds.HOME_BEGAN,
    kinds.HOME_LEFT,
    kinds.REQUEST_REFUSED,
)
# Table and column rights cannot express that an agent or grant may end but not return, that only a
# human confirms, that no event is skipped, or which kinds of events are allowed. A trigger refuses
# such rows to a role that lacks the given right on the whole table.
_GUARDS: Final = {
    "registry_agent": ("UPDATE", "NEW.status <> 'revoked'", "UPDATE"),
    "registry_grant": ("UPDATE", "NEW.status <> 'withdrawn'", "UPDATE"),
    "verifier_confirmation": ("INSERT", "NEW.human_id IS NOT NULL", "UPDATE"),
    "verifier_streamcursor": ("INSERT", "NEW.number <> 0", "UPDATE"),
    "audit_event": ("INSERT", f"NEW.kind NOT IN {_VERIFIER_KINDS!r}", "SELECT"),
}
# Functions that only the owner calls.
_NOT_CALLABLE: Final = ("agentauth_attach_events(text, text)", "agentauth_first_id(timestamp)")
_MONTHS_AHEAD: Final = (
    "SELECT agentauth_add_event_month(now() + by * interval '1 month')"
    " FROM generate_series(0, %s) by"
)
_PARTITIONS: Final = """
SELECT relname FROM pg_class
WHERE relispartition AND relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
_IN_REACH: Final = """
SELECT min(role.rolname), held.relname, wanted.name
FROM pg_roles role, pg_class held,
     unnest(ARRAY[
       'SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER'
     ]) wanted(name)
WHERE pg_has_role(%s, role.oid, 'MEMBER') AND role.rolname <> %s
  AND held.relkind IN ('r', 'p') AND held.relnamespace = 'public'::regnamespace
  AND (has_table_privilege(role.oid, held.oid, wanted.name)
       OR wanted.name IN ('SELECT', 'INSERT', 'UPDATE')
          AND has_any_column_privilege(role.oid, held.oid, wanted.name))
GROUP BY held.relname, wanted.name
"""


class RoleError(Exception):
    """Grants cannot limit this role. The text says what to change."""


def grant_serving_role(role: str) -> dict[str, list[str]]:
    """Give `role` exactly the rights the services need; returns table → rights.

    Needs the owner's connection. Safe to run after every migration; one transaction, so that the
    role can change the log at no moment. Raises RoleError if grants cannot limit the role: no
    PostgreSQL, no such role, a superuser, the owner of the tables, one that creates roles or
    replicates, that may create objects in the database, or a member of a role with more rights.
    """
    return _grant(role, NEEDS["serving"])


def grant_verifier_role(role: str) -> dict[str, list[str]]:
    """As `grant_serving_role`, but gives exactly the rights for verify, batch and introspect."""
    return _grant(role, NEEDS["verifier"])


def temporary_left(role: str) -> str:
    """A warning if `role` may create temporary tables; else empty. Raises django.db errors."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_database(), has_database_privilege(%s, current_database(), "
            "'TEMPORARY')",
            [role],
        )
        database, left = cursor.fetchone()
    if not left:
        return ""
    return (
        f"Warning: the role {role} may still make temporary tables, which it does not need. "
        "As the owner of the database,"
        f" revoke TEMPORARY on database {database} from PUBLIC, from this role and from the "
        "roles it is a member of."
    )


def _grant(role: str, rights_on: Callable[[str], Rights]) -> dict[str, list[str]]:
    if connection.vendor != "postgresql":
        raise RoleError("Only PostgreSQL has roles; on SQLite only the triggers protect the log.")
    quoted = connection.ops.quote_name(role)
    granted = {}
    with transaction.atomic(), connection.cursor() as cursor:
        _refuse_unbindable(cursor, role)
        cursor.execute(f"GRANT USAGE ON SCHEMA public TO {quoted}")
        # Only the database's owner can do this; else PostgreSQL just warns (see `temporary_left`).
        database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
        cursor.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM {quoted}, PUBLIC")
        # The same holds for these two; `_refuse_more` checks what is left.
        cursor.execute(f"REVOKE CREATE ON DATABASE {database} FROM {quoted}, PUBLIC")
        cursor.execute(f"REVOKE CREATE ON SCHEMA public FROM {quoted}, PUBLIC")
        tables = sorted(connection.introspection.table_names(cursor))
        for table in tables:
            rights = rights_on(table)
            name = connection.ops.quote_name(table)
            # This also revokes rights on columns.
            cursor.execute(f"REVOKE ALL ON {name} FROM {quoted}, PUBLIC")
            if rights:
                cursor.execute(f"GRANT {', '.join(rights)} ON {name} TO {quoted}")
                granted[table] = list(rights)
        _bind_partitions(cursor, quoted)
        _guard(cursor)
        _refuse_more(cursor, role, granted)
    return granted


def _bind_partitions(cursor: Any, quoted: str) -> None:
    """Allow rows only through the parent table, and new months only through the function."""
    # Create the months ahead now; later the jobs and processes that record events create them.
    cursor.execute(_MONTHS_AHEAD, [AHEAD])
    cursor.execute(_PARTITIONS)
    for (partition,) in cursor.fetchall():
        cursor.execute(
            f"REVOKE ALL ON {connection.ops.quote_name(partition)} FROM {quoted}, PUBLIC"
        )
    for function in (*CALLABLE, *_NOT_CALLABLE):
        cursor.execute(f"REVOKE ALL ON FUNCTION {function} FROM {quoted}, PUBLIC")
    for function in CALLABLE:
        cursor.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {quoted}")


def _guard(cursor: Any) -> None:
    for table, (event, wrong, right) in _GUARDS.items():
        # Name the table with its schema: a bare name would match the session's temporary tables
        # first.
        cursor.execute(
            f'CREATE OR REPLACE TRIGGER "{table}_guarded" BEFORE {event} ON "{table}" FOR EACH ROW '
            f"WHEN ({wrong} AND NOT has_table_privilege('public.{table}'::regclass, '{right}')) "
            "EXECUTE FUNCTION agentauth_refuse('permission denied: this role may not do that "
            f"to rows of {table}')"
        )


def _refuse_unbindable(cursor: Any, role: str) -> None:
    cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = %s", [role])
    row = cursor.fetchone()
    if row is None:
        raise RoleError(
            f"There is no database role {role!r}: create it, with LOGIN and a password, first."
        )
    if row[0]:
        raise RoleError(
            f"The role {role!r} is a superuser, which no grant restricts: serve with an ordinary "
            "role."
        )
    cursor.execute(
        "SELECT bool_or(pg_has_role(%s, tableowner, 'MEMBER')) FROM pg_tables WHERE "
        "schemaname = 'public'",
        [role],
    )
    if cursor.fetchone()[0]:
        raise RoleError(
            f"The role {role!r} owns the tables, or is a member of the role that does: it "
            "could drop the triggers. "
            "Let DATABASE_URL name another role than DATABASE_OWNER_URL."
        )


def _refuse_more(cursor: Any, role: str, granted: Mapping[str, list[str]]) -> None:
    """Refuse a role that is, or by inheritance or SET ROLE becomes, more than `granted`."""
    for held_by, what in beyond_tables(cursor, role):
        raise RoleError(_remedy(role, held_by, what))
    cursor.execute(_IN_REACH, [role, role])
    for other, table, right in cursor.fetchall():
        if right not in granted.get(table, ()):
            raise RoleError(
                f"The role {role!r} is a member of {other!r}, which may {right} on {table}: "
                "revoke that membership."
            )


def _remedy(role: str, held_by: str, what: str) -> str:
    """The message for a role that has more than rights on tables."""
    if held_by != role:
        return (
            f"The role {role!r} is a member of {held_by!r}, which has {what}: revoke that "
            "membership."
        )
    if not what.startswith("CREATE on"):
        return (
            f"The role {role!r} has {what}, which no grant on tables restricts: as a superuser, "
            f"run ALTER ROLE {connection.ops.quote_name(role)} NO{what}, or serve with an "
            "ordinary role."
        )
    return (
        f"The role {role!r} has {what}, so it could create objects that other sessions find "
        f"before ours. As its owner or a superuser, revoke {what} from PUBLIC, this role and the "
        "roles it is a member of. The owner of the tables needs it: grant it to that role by name."
    )
