"""Rights of PostgreSQL roles: the serving role, and the verifier's, which changes no other state.

Tables and columns of other apps are text here, since audit imports no other app.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.apps import apps
from django.db import connection, transaction

from audit import kinds
from audit.db.partition_creation import AHEAD

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
_NEEDS: Final[Mapping[str, Callable[[str], Rights]]] = {
    "serving": lambda table: _LESS.get(table, _USUAL),
    "verifier": lambda table: _VERIFIER.get(table, ()),
}
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
# Functions both roles may call: create the month an event needs (`audit.db.partition_creation`),
# and insert an opening, which the verifier's role may neither read nor delete. They do nothing
# else.
_CALLABLE: Final = (
    "agentauth_add_event_month(timestamptz)",
    "agentauth_add_opening(uuid, uuid, text, bytea, jsonb)",
)
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


class RoleError(Exception):
    """Grants cannot limit this role. The text says what to change."""


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
        wider = _beyond_tables(cursor, role)
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


def _beyond_tables(cursor: Any, role: str) -> list[tuple[str, str]]:
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
        cursor.execute(_MAY_CALL, [[*_CALLABLE]])
        role, uses, not_called = cursor.fetchone()
        cursor.execute(_TABLES)
        tables = sorted(ours & {name for (name,) in cursor.fetchall()})
        cursor.execute(_OWN)
        for table, right, whole, columns in cursor.fetchall():
            held.setdefault(table, {})[right] = None if whole else set(columns)
    missing = [
        f"{right} on {table}"
        for table in tables
        for right in _NEEDS[kind](table)
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


def grant_serving_role(role: str) -> dict[str, list[str]]:
    """Give `role` exactly the rights the services need; returns table → rights.

    Needs the owner's connection. Safe to run after every migration; one transaction, so that the
    role can change the log at no moment. Raises RoleError if grants cannot limit the role: no
    PostgreSQL, no such role, a superuser, the owner of the tables, one that creates roles or
    replicates, that may create objects in the database, or a member of a role with more rights.
    """
    return _grant(role, _NEEDS["serving"])


def grant_verifier_role(role: str) -> dict[str, list[str]]:
    """As `grant_serving_role`, but gives exactly the rights for verify, batch and introspect."""
    return _grant(role, _NEEDS["verifier"])


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
    for function in (*_CALLABLE, *_NOT_CALLABLE):
        cursor.execute(f"REVOKE ALL ON FUNCTION {function} FROM {quoted}, PUBLIC")
    for function in _CALLABLE:
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
    for held_by, what in _beyond_tables(cursor, role):
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
