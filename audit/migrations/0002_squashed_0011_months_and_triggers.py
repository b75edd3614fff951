"""The log's rows never change, and on PostgreSQL its events are in monthly partitions.

An archived month can then be dropped as a whole (audit/db/partition_dropping.py). Two more
partitions hold the ids of clocks that are decades off.
"""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

from audit.db.trigger_operations import append_only

# A partition inherits the row triggers of its parent, but needs its own against a TRUNCATE that
# names the partition. All access goes through the parent, so revoke what default privileges grant.
_ATTACH = """
CREATE FUNCTION agentauth_attach_events(part text, bounds text) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $attach$
DECLARE
    grantee text;
BEGIN
    EXECUTE format('CREATE TABLE public.%I (LIKE public.audit_event INCLUDING ALL)', part);
    FOR grantee IN
        SELECT DISTINCT CASE held.grantee
            WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(held.grantee)) END
        FROM pg_class, aclexplode(relacl) held
        WHERE oid = format('public.%I', part)::regclass AND held.grantee <> relowner
    LOOP
        EXECUTE format('REVOKE ALL ON public.%I FROM %s', part, grantee);
    END LOOP;
    EXECUTE format(
        'CREATE TRIGGER audit_event_not_emptied BEFORE TRUNCATE ON public.%I FOR EACH STATEMENT '
        'EXECUTE FUNCTION public.agentauth_refuse(%L)',
        part, 'append-only: rows of audit_event never change');
    EXECUTE format(
        'ALTER TABLE public.audit_event ATTACH PARTITION public.%I FOR VALUES %s', part, bounds);
END
$attach$
"""
# A caller gets the partition of one month and nothing else. The lock is the one that ATTACH takes:
# one caller at a time, and inserts go on. An attacker who may call it could add months without
# end, and each slows every query a little: so at most 24 may be more than three years ahead.
_ADD_MONTH = """
CREATE FUNCTION agentauth_add_event_month(moment timestamptz) RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
DECLARE
    month timestamp := date_trunc('month', moment AT TIME ZONE 'UTC');
    part text := to_char(month, '"audit_event_"YYYY_MM');
BEGIN
    IF moment IS NULL OR month < '2025-01-01' OR month >= '2100-01-01' THEN
        RETURN false;
    END IF;
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
        part,
        format(
            'FROM (%L) TO (%L)',
            public.agentauth_first_id(month),
            public.agentauth_first_id(month + interval '1 month')));
    RETURN true;
END
$add$
"""
_FIRST_ID = """
CREATE FUNCTION agentauth_first_id(moment timestamp) RETURNS uuid
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $id$
SELECT (
    lpad(to_hex((extract(epoch FROM moment) * 1000)::bigint), 12, '0') || repeat('0', 20)
)::uuid
$id$
"""
# A role that may add events, but not read or change openings, adds an opening with this function.
# It is called in the statement that inserts the event, before its queue entry; every committed
# event has a queue entry or a leaf. So nothing is added to an event later.
_ADD_OPENING = """
CREATE FUNCTION agentauth_add_opening(
    id uuid, event uuid, member text, salt bytea, value jsonb
) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
BEGIN
    IF EXISTS (SELECT FROM public.audit_leaf l WHERE l.event_id = $2)
        OR EXISTS (SELECT FROM public.audit_queueentry q WHERE q.event_id = $2) THEN
        RAISE EXCEPTION USING ERRCODE = '23001',
            MESSAGE = 'append-only: an opening is added together with its event';
    END IF;
    INSERT INTO public.audit_opening (id, event_id, member, salt, value)
    VALUES ($1, $2, $3, $4, $5);
END
$add$
"""
# PostgreSQL lets every role call a new function. `grant_serving_role` and `grant_verifier_role`
# decide who may call these.
_REVOKE = """
REVOKE ALL ON FUNCTION agentauth_add_event_month(timestamptz) FROM PUBLIC;
REVOKE ALL ON FUNCTION agentauth_attach_events(text, text) FROM PUBLIC;
REVOKE ALL ON FUNCTION agentauth_first_id(timestamp) FROM PUBLIC
"""
_DROP_FUNCTIONS = """
DROP FUNCTION agentauth_add_opening(uuid, uuid, text, bytea, jsonb);
DROP FUNCTION agentauth_add_event_month(timestamptz);
DROP FUNCTION agentauth_attach_events(text, text);
DROP FUNCTION agentauth_first_id(timestamp)
"""
_FIRST_AND_LAST = """
SELECT
    agentauth_attach_events(
        'audit_event_early',
        format('FROM (MINVALUE) TO (%L)', agentauth_first_id('2025-01-01'))),
    agentauth_attach_events(
        'audit_event_late',
        format('FROM (%L) TO (MAXVALUE)', agentauth_first_id('2100-01-01')))
"""
# This month and the three after it. The jobs continue (audit/db/partition_creation.py).
_MONTHS = """
SELECT agentauth_add_event_month(now() + ahead * interval '1 month')
FROM generate_series(0, 3) ahead
"""


def create_functions(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        # Without parameters, a % is a plain character.
        editor.execute(_FIRST_ID, None)
        editor.execute(_ATTACH, None)
        editor.execute(_ADD_MONTH, None)
        editor.execute(_ADD_OPENING, None)
        editor.execute(_REVOKE, None)


def drop_functions(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_DROP_FUNCTIONS, None)


def create_partitions(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    """Needs the indexes and triggers of `audit_event`: a partition gets a copy of each."""
    if editor.connection.vendor == "postgresql":
        editor.execute(_FIRST_AND_LAST, None)
        editor.execute(_MONTHS, None)


class Migration(migrations.Migration):
    replaces = [
        ("audit", "0002_append_only"),
        ("audit", "0003_tree"),
        ("audit", "0004_grown"),
        ("audit", "0005_partitions"),
        ("audit", "0006_whose_leaf"),
        ("audit", "0007_history_indexes"),
        ("audit", "0008_dropped_months"),
        ("audit", "0009_log_breaks"),
        ("audit", "0010_openings_by_function"),
        ("audit", "0011_openings_of_new_events"),
    ]
    dependencies = [("audit", "0001_tables")]

    operations = [
        append_only("audit_event"),
        append_only("audit_leaf", unique=("leaf_index", "event_id")),
        # Deleting an opening is erasure. Changing one would be a lie.
        append_only("audit_opening", deletable=True),
        append_only("audit_node", unique=("id", ("level", "index"))),
        append_only("audit_checkpoint", unique=("size",)),
        append_only("audit_cosignature", unique=("id", ("checkpoint_id", "witness"))),
        append_only("audit_checkpointcopy", unique=("id", ("checkpoint_id", "store"))),
        append_only("audit_segment", unique=("first", "end")),
        append_only("audit_droppedmonth"),
        append_only("audit_logbreak", unique=("name",)),
        migrations.RunPython(create_functions, drop_functions),
        migrations.RunPython(create_partitions, migrations.RunPython.noop),
    ]
