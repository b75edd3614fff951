"""How each key was introduced by the one before it; nobody introduced those that are there already."""

from django.db import migrations, models

from audit.db.triggers import state_machine, when_undone

KEY = state_machine(
    "kms_key",
    "state",
    transitions={
        "next": ["active", "disabled"],
        "active": ["retired", "disabled"],
        "retired": ["disabled"],
    },
    initial=["next", "active"],
)


class Migration(migrations.Migration):
    dependencies = [("kms", "0002_states")]

    operations = [
        when_undone(KEY),
        migrations.AddField(
            model_name="key",
            name="introduction",
            field=models.TextField(blank=True, db_default="", default=""),
        ),
        # SQLite rebuilt the table without its triggers.
        KEY,
    ]
