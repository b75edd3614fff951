"""The guards of `audit/db/roles.py` look at a table by its id. A temporary table of the role could stand in for its name."""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

_GUARDS = {
    "registry_agent": ("UPDATE", "NEW.status <> 'revoked'"),
    "registry_grant": ("UPDATE", "NEW.status <> 'withdrawn'"),
    "verifier_confirmation": ("INSERT", "NEW.human_id IS NOT NULL"),
    "verifier_streamcursor": ("INSERT", "NEW.number <> 0"),
}
_GUARD = """
CREATE OR REPLACE TRIGGER {table}_guarded BEFORE {event} ON public.{table} FOR EACH ROW
WHEN ({wrong} AND NOT has_table_privilege('public.{table}'::regclass, 'UPDATE'))
EXECUTE FUNCTION agentauth_refuse('permission denied: this role may not do that to rows of {table}')
"""


def guard_by_table(_apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    """Where a role was bound, the guards are there. Each statement replaces one of them in one step."""
    if editor.connection.vendor != "postgresql":
        return
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal")
        there = {name for (name,) in cursor.fetchall()}
    for table, (event, wrong) in _GUARDS.items():
        if f"{table}_guarded" in there:
            editor.execute(_GUARD.format(table=table, event=event, wrong=wrong))


class Migration(migrations.Migration):
    # Each lock ends with its statement, so that no two of them wait for a transaction that holds the other.
    atomic = False
    dependencies = [
        ("verifier", "0009_home_history"),
        ("registry", "0014_seals"),
        ("audit", "0011_openings_of_new_events"),
    ]
    beside_older_code = "Triggers refuse what they refused before, by the same condition; only a temporary table changes nothing now."

    operations = [migrations.RunPython(guard_by_table, migrations.RunPython.noop)]
