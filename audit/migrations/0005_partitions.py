"""On PostgreSQL the events stand in partitions, one a month by their ids, so that a month can be dropped as a whole.

A partition is made beside the table and then attached, which keeps out nobody who inserts. The two at the ends take ids of
clocks that are decades off.
"""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.triggers import append_only

_BATCH = 20_000
_INDEXES = {
    "event_agent": "(agent_id, id)",
    "event_human": "(human_id, id)",
    "event_grant": "(grant_id, id)",
    "event_kind": "(kind, id)",
}
_ZERO, _LAST = "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"

# The trigger of the parent keeps rows; TRUNCATE of a partition by its own name would pass it by.
_ATTACH = """
CREATE FUNCTION agentauth_attach_events(part text, bounds text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $attach$
DECLARE
    grantee text;
BEGIN
    EXECUTE format('CREATE TABLE public.%I (LIKE public.audit_event INCLUDING ALL)', part);
    -- What default privileges gave: nobody has a business with a partition.
    FOR grantee IN
        SELECT DISTINCT CASE held.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(held.grantee)) END
        FROM pg_class, aclexplode(relacl) held
        WHERE oid = format('public.%I', part)::regclass AND held.grantee <> relowner
    LOOP
        EXECUTE format('REVOKE ALL ON public.%I FROM %s', part, grantee);
    END LOOP;
    EXECUTE format(
        'CREATE TRIGGER audit_event_not_emptied BEFORE TRUNCATE ON public.%I FOR EACH STATEMENT '
        'EXECUTE FUNCTION public.agentauth_refuse(%L)', part, 'append-only: rows of audit_event never change');
    EXECUTE format('ALTER TABLE public.audit_event ATTACH PARTITION public.%I FOR VALUES %s', part, bounds);
END
$attach$
"""
# Whoever may call it gets a month and nothing else. A role that was taken over could ask for months without end, each of
# which makes every question a little slower: of those more than three years ahead there are 24 at most.
_ADD = """
CREATE FUNCTION agentauth_add_event_month(moment timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
DECLARE
    month timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    part text := to_char(month, '"audit_event_"YYYY_MM');
BEGIN
    IF moment IS NULL OR month < '2025-01-01' OR month >= '2100-01-01' THEN
        RETURN false;
    END IF;
    -- One at a time, and whoever inserts goes on: ATTACH takes this lock as well.
    LOCK TABLE ONLY public.audit_event IN SHARE UPDATE EXCLUSIVE MODE;
    IF EXISTS (SELECT FROM pg_inherits JOIN pg_class ON oid = inhrelid
               WHERE inhparent = 'public.audit_event'::regclass AND relname = part) THEN
        RETURN false;
    END IF;
    IF month > now() + interval '3 years' AND 24 <= (
        SELECT count(*) FROM pg_inherits JOIN pg_class ON oid = inhrelid
        WHERE inhparent = 'public.audit_event'::regclass
          AND relname > to_char(now() + interval '3 years', '"audit_event_"YYYY_MM')
          AND relname < 'audit_event_3'
    ) THEN
        RAISE EXCEPTION 'more months are years ahead than clocks go wrong';
    END IF;
    PERFORM public.agentauth_attach_events(
        part, format('FROM (%L) TO (%L)', public.agentauth_first_id(month), public.agentauth_first_id(month + interval '1 month')));
    RETURN true;
END
$add$
"""
_FIRST_ID = """
CREATE FUNCTION agentauth_first_id(moment timestamp) RETURNS uuid LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $id$ SELECT (lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid $id$
"""
_FUNCTIONS = (
    "agentauth_add_event_month(timestamptz)",
    "agentauth_attach_events(text, text)",
    "agentauth_first_id(timestamp)",
)
_ENDS = """
SELECT agentauth_attach_events('audit_event_early', format('FROM (MINVALUE) TO (%L)', agentauth_first_id('2025-01-01'))),
       agentauth_attach_events('audit_event_late', format('FROM (%L) TO (MAXVALUE)', agentauth_first_id('2100-01-01')))
"""
# This month and the three after it.
_AHEAD = "SELECT agentauth_add_event_month(now() + ahead * interval '1 month') FROM generate_series(0, 3) ahead"
_MONTHS = """
SELECT agentauth_add_event_month(moment) FROM (
    SELECT DISTINCT date_trunc('month', to_timestamp(
        ('x0000' || left(replace(id::text, '-', ''), 12))::bit(64)::bigint / 1000) AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS moment
    FROM audit_event_aside WHERE id >= %s AND id < %s) months
"""
_MOVE = "INSERT INTO audit_event SELECT * FROM audit_event_aside WHERE id >= %s AND id < %s"


def partition(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor != "postgresql":
        return
    _set_aside(editor, partitioned=True)
    append_only("audit_event").code(apps, editor)
    for statement in (_FIRST_ID, _ATTACH, _ADD):
        # Without parameters a % is a %.
        editor.execute(statement, None)
    for function in _FUNCTIONS:
        editor.execute(f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC")
    with editor.connection.cursor() as cursor:
        cursor.execute(_ENDS)
        cursor.execute(_AHEAD)
    _copy(editor, months=True)
    editor.execute("DROP TABLE audit_event_aside")


def unpartition(apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor != "postgresql":
        return
    _set_aside(editor, partitioned=False)
    append_only("audit_event").code(apps, editor)
    _copy(editor, months=False)
    editor.execute("DROP TABLE audit_event_aside")
    for function in _FUNCTIONS:
        editor.execute(f"DROP FUNCTION {function}")


def _set_aside(editor: BaseDatabaseSchemaEditor, *, partitioned: bool) -> None:
    """The table as `audit_event_aside`, and an empty one of its name, with its indexes and checks, in its place."""
    editor.execute("LOCK TABLE audit_event IN ACCESS EXCLUSIVE MODE")
    editor.execute("ALTER TABLE audit_event RENAME TO audit_event_aside")
    for index in ("audit_event_pkey", *_INDEXES):
        editor.execute(f"ALTER INDEX {index} RENAME TO {index}_aside")
    how = "PARTITION BY RANGE (id)" if partitioned else ""
    editor.execute(
        "CREATE TABLE audit_event (LIKE audit_event_aside INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE, "
        f"CONSTRAINT audit_event_pkey PRIMARY KEY (id)) {how}"
    )
    for index, columns in _INDEXES.items():
        editor.execute(f"CREATE INDEX {index} ON audit_event {columns}")


def _copy(editor: BaseDatabaseSchemaEditor, *, months: bool) -> None:
    """All rows, so many at a time that no statement runs into the limit of time."""
    with editor.connection.cursor() as cursor:
        first = _id(cursor, _ZERO, 0)
        while first is not None:
            following = _id(cursor, first, _BATCH)
            window = [first, following or _LAST]
            if months:
                cursor.execute(_MONTHS, window)
            cursor.execute(_MOVE, window)
            first = following


def _id(cursor: Any, first: Any, further: int) -> Any:
    """The id so many rows after the one at or above `first`, or None."""
    cursor.execute(
        "SELECT id FROM audit_event_aside WHERE id >= %s ORDER BY id OFFSET %s LIMIT 1",
        [first, further],
    )
    row = cursor.fetchone()
    return row[0] if row else None


class Migration(migrations.Migration):
    dependencies = [("audit", "0004_grown")]

    operations = [migrations.RunPython(partition, unpartition)]
