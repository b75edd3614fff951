"""A role that may add events, but not read or change openings, adds an opening by a function of the owner."""

from typing import Any

from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

_DROP = "DROP FUNCTION agentauth_add_opening(uuid, uuid, text, bytea, jsonb)"
_ADD = """
CREATE FUNCTION agentauth_add_opening(id uuid, event uuid, member text, salt bytea, value jsonb) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $add$
INSERT INTO public.audit_opening (id, event_id, member, salt, value) VALUES ($1, $2, $3, $4, $5)
$add$
"""


def add(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_ADD, None)


def drop(_apps: Any, editor: BaseDatabaseSchemaEditor) -> None:
    if editor.connection.vendor == "postgresql":
        editor.execute(_DROP)


class Migration(migrations.Migration):
    dependencies = [("audit", "0009_log_breaks")]
    beside_older_code = "It adds a function, which older code does not call; no table changes."

    operations = [migrations.RunPython(add, drop)]
