"""What database roles may do on PostgreSQL: the one that serves everything, and the verifier's, which changes no state.

Tables and columns stand here as text, and what the guards look at: this app is below those that own them.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final

from django.apps import apps
from django.db import connection, transaction

from audit import kinds
from audit.partitions import AHEAD

Rights = tuple[str, ...]
# Table, right, whether of the whole table, and of which of its columns.
_Held = tuple[str, str, bool, list[str]]

_USUAL: Final[Rights] = ("DELETE", "INSERT", "SELECT", "UPDATE")
# Where the serving role may do less than the usual. TRUNCATE, ALTER and DROP it may do nowhere.
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
    # The owner drops.
    "audit_droppedmonth": ("SELECT",),
    # What ended never counts again, and rows without a seal are believed no more once `seal_rows` ran.
    "kms_endedseal": ("INSERT", "SELECT"),
    "kms_sealspending": ("DELETE", "SELECT"),
    # The version of a pair's `sub` never changes.
    "registry_pairwisesubject": ("INSERT", "SELECT"),
    # The recorded settings may be changed, never deleted.
    "registry_installation": ("INSERT", "SELECT", "UPDATE"),
    "django_migrations": ("SELECT",),
}
# All that the verifier's role may do; nothing with a table that is not here.
_VERIFIER: Final[Mapping[str, Rights]] = {
    # Whether a person signed what a grant says; not who has which passkey, nor what they read.
    "approvals_receipt": ("SELECT (compact, decision, kind, subject)",),
    # What it says goes into the log, which it cannot read. An id says whether its month is there.
    "audit_event": ("INSERT", "SELECT (id)"),
    "audit_queueentry": ("INSERT", "SELECT"),
    "audit_refusalcount": ("INSERT", "SELECT", "UPDATE (count)"),
    # Whether its tables are those of its code.
    "django_migrations": ("SELECT",),
    # Who lives, of a session: not what is in it.
    "django_session": ("SELECT (expire_date, session_key)",),
    "kms_endedseal": ("SELECT",),
    "kms_key": ("SELECT",),
    "kms_keycertificate": ("SELECT",),
    "kms_sealspending": ("SELECT",),
    # A proof that shows its private key ends the agent that holds it, and what that one still asks for.
    "registry_agent": ("SELECT", "UPDATE (status)"),
    "registry_barredkey": ("INSERT", "SELECT"),
    "registry_grant": ("SELECT", "UPDATE (ended_at, status)"),
    "registry_human": ("SELECT",),
    # To compare its settings with the recorded ones.
    "registry_installation": ("SELECT",),
    "registry_serviceprovider": ("SELECT",),
    "registry_serviceprovidersecret": ("SELECT",),
    # The jobs forget them.
    "registry_spentproof": ("INSERT", "SELECT (digest)"),
    "registry_token": ("SELECT",),
    # One whose day is over makes room for the next.
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
    # How far it was told of events; how far they are written down is the jobs' to say.
    "verifier_streamcursor": ("INSERT", "SELECT", "UPDATE (told)"),
}
# What each kind of process needs of a table.
_NEEDS: Final[Mapping[str, Callable[[str], Rights]]] = {
    "serving": lambda table: _LESS.get(table, _USUAL),
    "verifier": lambda table: _VERIFIER.get(table, ()),
}
# The kinds of events that the verifier's processes write. Any other tells of an act that is not theirs.
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
# Columns and rights on a table cannot say that an agent or a grant may end but not come back, that a yes is a human's, that
# no event is passed over, nor what an event tells. A trigger refuses such rows to a role without this right on the whole table.
_GUARDS: Final = {
    "registry_agent": ("UPDATE", "NEW.status <> 'revoked'", "UPDATE"),
    "registry_grant": ("UPDATE", "NEW.status <> 'withdrawn'", "UPDATE"),
    "verifier_confirmation": ("INSERT", "NEW.human_id IS NOT NULL", "UPDATE"),
    "verifier_streamcursor": ("INSERT", "NEW.number <> 0", "UPDATE"),
    "audit_event": ("INSERT", f"NEW.kind NOT IN {_VERIFIER_KINDS!r}", "SELECT"),
}
# Both may have the month made that an event needs (`audit.partitions`), and add the opening of an event, which the
# verifier's role may neither read nor delete. Each function does nothing else.
_CALLABLE: Final = (
    "agentauth_add_event_month(timestamptz)",
    "agentauth_add_opening(uuid, uuid, text, bytea, jsonb)",
)
_NOT_CALLABLE: Final = ("agentauth_attach_events(text, text)", "agentauth_first_id(timestamp)")
_MONTHS_AHEAD: Final = (
    "SELECT agentauth_add_event_month(now() + by * interval '1 month') FROM generate_series(0, %s) by"
)
_PARTITIONS: Final = """
SELECT relname FROM pg_class WHERE relispartition AND relkind = 'r' AND relnamespace = 'public'::regnamespace
"""
_IN_REACH: Final = """
SELECT min(role.rolname), held.relname, wanted.name
FROM pg_roles role, pg_class held,
     unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) wanted(name)
WHERE pg_has_role(%s, role.oid, 'MEMBER') AND role.rolname <> %s
  AND held.relkind IN ('r', 'p') AND held.relnamespace = 'public'::regnamespace
  AND (has_table_privilege(role.oid, held.oid, wanted.name)
       OR wanted.name IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(role.oid, held.oid, wanted.name))
GROUP BY held.relname, wanted.name
"""
# What is in reach of this process's own role: of whole tables, or these columns of them. A superuser has all of it.
_OWN: Final = """
SELECT held.relname, wanted.name, has_table_privilege(held.oid, wanted.name),
       ARRAY(SELECT attname::text FROM pg_attribute
             WHERE wanted.name IN ('SELECT', 'INSERT', 'UPDATE') AND attrelid = held.oid AND attnum > 0 AND NOT attisdropped
               AND has_column_privilege(held.oid, attnum, wanted.name)
             ORDER BY attname)
FROM pg_class held, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE']) wanted(name)
WHERE held.relkind IN ('r', 'p') AND held.relnamespace = 'public'::regnamespace
  AND (has_table_privilege(held.oid, wanted.name)
       OR wanted.name IN ('SELECT', 'INSERT', 'UPDATE') AND has_any_column_privilege(held.oid, wanted.name))
ORDER BY held.relname, wanted.name
"""
# Beside tables.
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
    """The role cannot be bound. Says what to change."""


def may_read_log() -> bool:
    """Whether this process's role may read the log: all may but the verifier's. Raises django.db errors."""
    if connection.vendor != "postgresql":
        return True
    with connection.cursor() as cursor:
        cursor.execute("SELECT has_table_privilege('public.audit_leaf', 'SELECT')")
        return bool(cursor.fetchone()[0])


def beyond_verifier(*, known_alone: bool = False) -> list[str]:
    """What this process's role may do that answering verify, batch and introspect does not take: `UPDATE (name) on registry_human`.

    With `known_alone`, only of tables and columns that this code has a model of: the others are a later release's, whose own verifiers
    are held to what it gave them. What it could do after a SET ROLE is not looked at. None on SQLite, which has no roles. Raises django.db errors.
    """
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute(_OWN)
        held = cursor.fetchall()
    known = _known_columns()
    found = (
        (table, _more(right, whole, columns, _VERIFIER.get(table, ())))
        for table, right, whole, columns in (_known_part(row, known) if known_alone else row for row in held)
    )
    return [f"{more} on {table}" for table, more in found if more]


def missing_rights(kind: str) -> tuple[str, list[str]]:
    """This process's role, and what it may not do of what a `serving` or a `verifier` process needs.

    Each as `UPDATE (told) on verifier_streamcursor`. Empty on SQLite, and for tables that are not there yet. Raises django.db
    errors.
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
    missing += ["USAGE on schema public"] * (not uses) + [f"EXECUTE on {each}" for each in not_called]
    return str(role), missing


def _is_held(needed: str, held: Mapping[str, set[str] | None]) -> bool:
    """Whether a right, as the tables above write it, is among those held: of whole tables (None), or of these columns."""
    right, _, named = needed.rstrip(")").partition(" (")
    if right not in held:
        return False
    columns = held[right]
    return columns is None or (bool(named) and set(named.split(", ")) <= columns)


def _known_columns() -> dict[str, set[str]]:
    """By table, of those that this code has a model of."""
    described = [model._meta for model in apps.get_models(include_auto_created=True)]  # noqa: SLF001 — Django's API for it
    return {each.db_table: {str(field.column) for field in each.local_concrete_fields} for each in described}


def _known_part(row: _Held, known: Mapping[str, set[str]]) -> _Held:
    """The row without tables and columns that this code does not know. A partition of the log counts as known: no role may use it directly."""
    table, right, whole, columns = row
    if table in known:
        return table, right, whole, columns if whole else [each for each in columns if each in known[table]]
    is_known = table == "django_migrations" or table.startswith("audit_event_")
    return row if is_known else (table, right, False, [])


def _more(right: str, whole: bool, columns: list[str], given: Rights) -> str:  # noqa: FBT001 — a row of the query
    """The part of a right that goes beyond those `given`; empty for none."""
    if right in given:
        return ""
    if whole:
        return right
    of_columns = (each.removeprefix(f"{right} (") for each in given if each.startswith(f"{right} ("))
    more = set(columns) - {name for each in of_columns for name in each.rstrip(")").split(", ")}
    return f"{right} ({', '.join(sorted(more))})" if more else ""


def grant_serving_role(role: str) -> dict[str, list[str]]:
    """Give `role` exactly the rights the services need; returns table → rights. Needs the owner's connection.

    Safe to run after every migration; one transaction, so that there is no moment at which the role may change
    the log. Raises RoleError where grants would not bind the role: no PostgreSQL, no such role, a superuser, one
    that owns the tables, or one that gets more from a role it is a member of.
    """
    return _grant(role, _NEEDS["serving"])


def grant_verifier_role(role: str) -> dict[str, list[str]]:
    """Give `role` exactly what answering verify, batch and introspect takes. As `grant_serving_role` in all else."""
    return _grant(role, _NEEDS["verifier"])


def temporary_left(role: str) -> str:
    """A warning if `role` may still make temporary tables after its grants; else empty. Raises django.db errors."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_database(), has_database_privilege(%s, current_database(), 'TEMPORARY')", [role]
        )
        database, left = cursor.fetchone()
    if not left:
        return ""
    return (
        f"Warning: the role {role} may still make temporary tables, which it does not need. As the owner of the database,"
        f" revoke TEMPORARY on database {database} from PUBLIC, from this role and from the roles it is a member of."
    )


def _grant(role: str, rights_on: Callable[[str], Rights]) -> dict[str, list[str]]:
    if connection.vendor != "postgresql":
        raise RoleError("Only PostgreSQL has roles; on SQLite the triggers alone keep the log.")
    quoted = connection.ops.quote_name(role)
    granted = {}
    with transaction.atomic(), connection.cursor() as cursor:
        _refuse_unbindable(cursor, role)
        cursor.execute(f"GRANT USAGE ON SCHEMA public TO {quoted}")
        # Only the database's owner can; for another it is a warning of PostgreSQL (`temporary_left`).
        database = connection.ops.quote_name(str(connection.settings_dict["NAME"]))
        cursor.execute(f"REVOKE TEMPORARY ON DATABASE {database} FROM {quoted}, PUBLIC")
        tables = sorted(connection.introspection.table_names(cursor))
        for table in tables:
            rights = rights_on(table)
            name = connection.ops.quote_name(table)
            # Of its columns too.
            cursor.execute(f"REVOKE ALL ON {name} FROM {quoted}, PUBLIC")
            if rights:
                cursor.execute(f"GRANT {', '.join(rights)} ON {name} TO {quoted}")
                granted[table] = list(rights)
        _bind_partitions(cursor, quoted)
        _guard(cursor)
        _refuse_more(cursor, role, granted)
    return granted


def _bind_partitions(cursor: Any, quoted: str) -> None:
    """Rows go in and out by the table alone, and months come by the one function."""
    # After a migration is the moment to make those ahead; the jobs and whoever records go on with it.
    cursor.execute(_MONTHS_AHEAD, [AHEAD])
    cursor.execute(_PARTITIONS)
    for (partition,) in cursor.fetchall():
        cursor.execute(f"REVOKE ALL ON {connection.ops.quote_name(partition)} FROM {quoted}, PUBLIC")
    for function in (*_CALLABLE, *_NOT_CALLABLE):
        cursor.execute(f"REVOKE ALL ON FUNCTION {function} FROM {quoted}, PUBLIC")
    for function in _CALLABLE:
        cursor.execute(f"GRANT EXECUTE ON FUNCTION {function} TO {quoted}")


def _guard(cursor: Any) -> None:
    for table, (event, wrong, right) in _GUARDS.items():
        # The table by its id: a name would be looked up among the session's temporary tables first.
        cursor.execute(
            f'CREATE OR REPLACE TRIGGER "{table}_guarded" BEFORE {event} ON "{table}" FOR EACH ROW '
            f"WHEN ({wrong} AND NOT has_table_privilege('public.{table}'::regclass, '{right}')) "
            f"EXECUTE FUNCTION agentauth_refuse('permission denied: this role may not do that to rows of {table}')"
        )


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


def _refuse_more(cursor: Any, role: str, granted: Mapping[str, list[str]]) -> None:
    """What another role may do, its members may too: by inheriting it, or by becoming that role."""
    cursor.execute(_IN_REACH, [role, role])
    for other, table, right in cursor.fetchall():
        if right not in granted.get(table, ()):
            raise RoleError(
                f"The role {role!r} is a member of {other!r}, which may {right} on {table}: revoke that membership."
            )
