"""Rights of PostgreSQL roles: the serving role, and the verifier's, which changes no other state.

What each may do, and what this process's role has; `role_granting` gives a role its rights. Tables
and columns of other apps are text here, since audit imports no other app.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.apps import apps
from django.db import connection

Rights = tuple[str, ...]
# Table, right, whether it covers the whole table, and the columns it covers.
_Held = tuple[str, str, bool, list[str]]

_USUAL: Final[Rights] = ("DELETE", "INSERT", "SELECT", "UPDATE")
# Tables where the serving role has fewer rights. It may TRUNCATE, ALTER and DROP nowhere.
_LESS: Final[Mapping[str, Rights]] = {
    "audit_event": ("INSERT", "SELECT"),
    "audit_leaf": ("INSERT", "SELECT"),
    # Deleting an opening is erasure.
    "audit_opening": ("DELETE", "INSERT", "SELECT"),
    "audit_head": ("INSERT", "SELECT", "UPDATE"),
    **dict.fromkeys(
        (
            "audit_node",
            "audit_checkpoint",
            "audit_cosignature",
            "audit_checkpointcopy",
            "audit_segment",
            "audit_logbreak",
        ),
        ("INSERT", "SELECT"),
    ),
    # Only the owner drops months.
    "audit_droppedmonth": ("SELECT",),
    # An ended seal stays ended. Once `seal_rows` deleted a row of the other two tables, rows that
    # lack a seal, or a wide one, are never accepted again.
    "kms_endedseal": ("INSERT", "SELECT"),
    "kms_sealspending": ("DELETE", "SELECT"),
    "kms_widersealspending": ("DELETE", "SELECT"),
    # The version of a pair's `sub` never changes.
    "registry_pairwisesubject": ("INSERT", "SELECT"),
    # Without a rule, an agent's owner decides alone: a rule ends, and its row stays.
    "registry_approvalrule": ("INSERT", "SELECT", "UPDATE"),
    # The recorded settings may be changed, never deleted.
    "registry_installation": ("INSERT", "SELECT", "UPDATE"),
    "django_migrations": ("SELECT",),
}
# All rights of the verifier's role; none on other tables.
_VERIFIER: Final[Mapping[str, Rights]] = {
    # To check that a person signed the grant; not passkeys, nor what the person was shown.
    "approvals_receipt": ("SELECT (compact, decision, kind, subject)",),
    # It writes events that it cannot read. Reading ids is needed to check that a month exists.
    "audit_event": ("INSERT", "SELECT (id)"),
    "audit_queueentry": ("INSERT", "SELECT"),
    "audit_refusalcount": ("INSERT", "SELECT", "UPDATE (count)"),
    # To check that the tables match its code.
    "django_migrations": ("SELECT",),
    # To check that a session is alive, not to read its content.
    "django_session": ("SELECT (expire_date, session_key)",),
    "kms_endedseal": ("SELECT",),
    "kms_key": ("SELECT",),
    "kms_keycertificate": ("SELECT",),
    "kms_sealspending": ("SELECT",),
    "kms_widersealspending": ("SELECT",),
    # A proof that contains its private key revokes the agent and withdraws its open requests.
    "registry_agent": ("SELECT", "UPDATE (status)"),
    "registry_barredkey": ("INSERT", "SELECT"),
    "registry_grant": ("SELECT", "UPDATE (ended_at, status)"),
    "registry_human": ("SELECT",),
    # To compare its settings with the recorded ones.
    "registry_installation": ("SELECT",),
    "registry_serviceprovider": ("SELECT",),
    "registry_serviceprovidersecret": ("SELECT",),
    # The jobs delete old rows.
    "registry_spentproof": ("INSERT", "SELECT (digest)"),
    "registry_token": ("SELECT",),
    # An expired operation is deleted so that its idempotency key can be used again.
    "verifier_agentoperation": ("DELETE", "INSERT", "SELECT"),
    "verifier_confirmation": ("INSERT", "SELECT", "UPDATE (consumed_at, status)"),
    "verifier_grantledger": ("INSERT", "SELECT", "UPDATE (spent, tat_us, uses)"),
    "verifier_home": (
        "INSERT",
        "SELECT",
        "UPDATE (back_after, began_at, epoch, kind, leaving_at, leaving_for, servers)",
    ),
    "verifier_presencelease": ("SELECT",),
    "verifier_providercall": ("INSERT", "SELECT", "UPDATE (answer, body_sha256, expires_at)"),
    "verifier_statechange": ("INSERT", "SELECT"),
    # Up to where it knows the events; the jobs record up to where they are written.
    "verifier_streamcursor": ("INSERT", "SELECT", "UPDATE (told)"),
}
# The rights each kind of process needs on a table.
NEEDS: Final[Mapping[str, Callable[[str], Rights]]] = {
    "serving": lambda table: _LESS.get(table, _USUAL),
    "verifier": lambda table: _VERIFIER.get(table, ()),
}
# Functions both roles may call: create the month an event needs (`audit.db.partition_creation`),
# and insert an opening, which the verifier's role may neither read nor delete. They do nothing
# else.
CALLABLE: Final = (
    "agentauth_add_event_month(timestamptz)",
    "agentauth_add_opening(uuid, uuid, text, bytea, jsonb)",
)
# What makes a role, or a role it can become, more than the sum of its rights on tables: it creates
# roles (before PostgreSQL 16 it may join any), copies the whole cluster, has the rights of a
# predefined role (programs and files of the server, all rows), or creates objects that other
# sessions find first.
_BEYOND_TABLES: Final = """
SELECT role.rolname, found.name
FROM pg_roles role, LATERAL (VALUES
    (role.rolsuper, 'SUPERUSER'),
    (role.rolcreaterole, 'CREATEROLE'),
    (role.rolreplication, 'REPLICATION'),
    (role.rolname LIKE 'pg\\_%%', 'the rights of a predefined role'),
    (has_schema_privilege(role.oid, 'public', 'CREATE'), 'CREATE on schema public'),
    (has_database_privilege(role.oid, current_database(), 'CREATE'),
     'CREATE on database ' || current_database())
) found(is_so, name)
WHERE pg_has_role(%s, role.oid, 'MEMBER') AND found.is_so
ORDER BY role.rolname <> %s, role.rolname, found.name
"""
# The rights of this process's own role on whole tables or on columns. A superuser has all rights.
_OWN: Final = """
SELECT held.relname, wanted.name, has_table_privilege(held.oid, wanted.name),
       ARRAY(SELECT attname::text FROM pg_attribute
             WHERE wanted.name IN ('SELECT', 'INSERT', 'UPDATE')
               AND attrelid = held.oid AND attnum > 0 AND NOT attisdropped
               AND has_column_privilege(held.oid, attnum, wanted.name)
             ORDER BY attname)
FROM pg_class held, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) wanted(name)
WHERE held.relkind IN ('r', 'p') AND held.relnamespace = 'public'::regnamespace
  AND (has_table_privilege(held.oid, wanted.name)
       OR wanted.name IN ('SELECT', 'INSERT', 'UPDATE')
          AND has_any_column_privilege(held.oid, wanted.name))
ORDER BY held.relname, wanted.name
"""
# Rights other than on tables.
_MAY_CALL: Final = """
SELECT current_user, has_schema_privilege('public', 'USAGE'), ARRAY(
    SELECT called FROM unnest(%s::text[]) called
    WHERE NOT coalesce(has_function_privilege(to_regprocedure(called), 'EXECUTE'), true))
"""
_TABLES: Final = """
SELECT relname FROM pg_class
WHERE relkind IN ('r', 'p') AND NOT relispartition AND relnamespace = 'public'::regnamespace
"""


def may_read_log() -> bool:
    """Whether this process's role may read the log; the verifier's may not.

    Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege('public.audit_leaf', 'SELECT')")
        return bool(cursor.fetchone()[0])


def may_change_log() -> bool:
    """Whether this process's role may change events, as an owner of the tables or a superuser can.

    False on SQLite, where only triggers protect the log. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return False
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege('public.audit_event', 'UPDATE')")
        return bool(cursor.fetchone()[0])


def beyond_verifier(*, known_alone: bool = False) -> list[str]:
    """This process's rights beyond those of a verifier, as `UPDATE (name) on registry_human`.

    With `known_alone`, only on tables and columns that this code has a model of: others belong to a
    later release, which checks its own verifiers. Ignores rights on tables after a SET ROLE. Empty
    on SQLite, which has no roles. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(_OWN)
        held = cursor.fetchall()
        cursor.execute("SELECT current_user")
        role = cursor.fetchone()[0]
        wider = beyond_tables(cursor, role)
    known = _known_columns()
    found = (
        (table, _more(right, whole, columns, _VERIFIER.get(table, ())))
        for table, right, whole, columns in (
            _known_part(row, known) if known_alone else row for row in held
        )
    )
    return [f"{more} on {table}" for table, more in found if more] + [
        what if held_by == role else f"{what} as {held_by}" for held_by, what in wider
    ]


def beyond_tables(cursor: Any, role: str) -> list[tuple[str, str]]:
    """What makes `role` more than its rights on tables: the role that has it, and its name."""
    cursor.execute(_BEYOND_TABLES, [role, role])
    return [(str(held_by), str(what)) for held_by, what in cursor.fetchall()]


def is_verifier_role() -> bool:
    """Whether this process's role is one that `grant_verifier_role` made. Raises django.db errors.

    False on SQLite.
    """
    return (
        connection.vendor == "postgresql"
        and not missing_rights("verifier")[1]
        and not beyond_verifier()
    )


def missing_rights(kind: str) -> tuple[str, list[str]]:
    """This process's role, and the rights it lacks as a `serving` or `verifier` process (`kind`).

    Each as `UPDATE (told) on verifier_streamcursor`. Empty on SQLite; skips tables that do not
    exist yet. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return "", []
    ours = {*connection.introspection.django_table_names(), "django_migrations"}
    held: dict[str, dict[str, set[str] | None]] = {}
    with connection.cursor() as cursor:
        cursor.execute(_MAY_CALL, [[*CALLABLE]])
        role, uses, not_called = cursor.fetchone()
        cursor.execute(_TABLES)
        tables = sorted(ours & {name for (name,) in cursor.fetchall()})
        cursor.execute(_OWN)
        for table, right, whole, columns in cursor.fetchall():
            held.setdefault(table, {})[right] = None if whole else set(columns)
    missing = [
        f"{right} on {table}"
        for table in tables
        for right in NEEDS[kind](table)
        if not _is_held(right, held.get(table, {}))
    ]
    missing += ["USAGE on schema public"] * (not uses) + [
        f"EXECUTE on {each}" for each in not_called
    ]
    return str(role), missing


def _is_held(needed: str, held: Mapping[str, set[str] | None]) -> bool:
    """Whether a right, written as in _VERIFIER, is in `held`, where None is the whole table."""
    right, _, named = needed.rstrip(")").partition(" (")
    if right not in held:
        return False
    columns = held[right]
    return columns is None or (bool(named) and set(named.split(", ")) <= columns)


def _known_columns() -> dict[str, set[str]]:
    """The columns of each table that this code has a model of."""
    described = [model._meta for model in apps.get_models(include_auto_created=True)]  # noqa: SLF001 — Django's API for it
    return {
        each.db_table: {str(field.column) for field in each.local_concrete_fields}
        for each in described
    }


def _known_part(row: _Held, known: Mapping[str, set[str]]) -> _Held:
    """The row without tables and columns that this code does not know.

    A partition of the log counts as known, since no role may use it directly.
    """
    table, right, whole, columns = row
    if table in known:
        return (
            table,
            right,
            whole,
            columns if whole else [each for each in columns if each in known[table]],
        )
    is_known = table == "django_migrations" or table.startswith("audit_event_")
    return row if is_known else (table, right, False, [])


def _more(right: str, whole: bool, columns: list[str], given: Rights) -> str:  # noqa: FBT001 — a row of the query
    """The part of a right that exceeds those `given`; empty if none."""
    if right in given:
        return ""
    if whole:
        return right
    of_columns = (
        each.removeprefix(f"{right} (") for each in given if each.startswith(f"{right} (")
    )
    more = set(columns) - {name for each in of_columns for name in each.rstrip(")").split(", ")}
    return f"{right} ({', '.join(sorted(more))})" if more else ""
