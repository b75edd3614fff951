from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

_GUARD = """
CREATE OR REPLACE TRIGGER verifier_streamcursor_guarded BEFORE INSERT ON verifier_streamcursor FOR EACH ROW
WHEN (NEW.number <> 0 AND NOT has_table_privilege('verifier_streamcursor', 'UPDATE'))
EXECUTE FUNCTION agentauth_refuse('permission denied: this role may not do that to rows of verifier_streamcursor')
"""


def guard_number_alone(_apps: Apps, editor: BaseDatabaseSchemaEditor) -> None:
    """The trigger that audit/db/roles.py puts there may name the column, which then could not go.

    What it guards stays guarded meanwhile; it comes back in its own words with the next `grant_verifier_role`.
    """
    if editor.connection.vendor != "postgresql":
        return
    with editor.connection.cursor() as cursor:
        cursor.execute("SELECT 1 FROM pg_trigger WHERE tgname = 'verifier_streamcursor_guarded'")
        guarded = cursor.fetchone()
    if guarded:
        editor.execute(_GUARD)


class Migration(migrations.Migration):
    dependencies = [
        ("verifier", "0006_told"),
    ]

    operations = [
        migrations.RunPython(guard_number_alone, migrations.RunPython.noop),
        migrations.RemoveField(model_name="streamcursor", name="entry_id"),
    ]
