"""The function that adds an opening refuses one for an event that is in the log already, or waits for its number."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# The statement that writes an event calls this before it inserts the queue entry, so the event has neither that nor a leaf.
# Each event that is committed has one of them.
_NEW_ALONE = """
CREATE OR REPLACE FUNCTION agentauth_add_opening(id uuid, event uuid, member text, salt bytea, value jsonb) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
BEGIN
    IF EXISTS (SELECT FROM public.audit_leaf l WHERE l.event_id = $2)
        OR EXISTS (SELECT FROM public.audit_queueentry q WHERE q.event_id = $2) THEN
        RAISE EXCEPTION USING ERRCODE = '23001',
            MESSAGE = 'append-only: an opening is added together with its event';
    END IF;
    INSERT INTO public.audit_opening (id, event_id, member, salt, value) VALUES ($1, $2, $3, $4, $5);
END
$add$
"""
_ANY = """
CREATE OR REPLACE FUNCTION agentauth_add_opening(id uuid, event uuid, member text, salt bytea, value jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
INSERT INTO public.audit_opening (id, event_id, member, salt, value) VALUES ($1, $2, $3, $4, $5)
$add$
"""


def refuse(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_NEW_ALONE, None)


def allow(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_ANY, None)


class Migration(migrations.Migration):
    dependencies = [("audit", "0010_openings_by_function")]
    beside_older_code = "It refuses openings of events that are written already; older code adds one only in the statement that writes its event."

    operations = [migrations.RunPython(refuse, allow)]
