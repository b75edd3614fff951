from django.db import migrations

from audit.db.triggers import state_machine


class Migration(migrations.Migration):
    dependencies = [("kms", "0001_initial"), ("audit", "0002_append_only")]

    operations = [
        state_machine(
            "kms_key",
            "state",
            transitions={
                "next": ["active", "disabled"],
                "active": ["retired", "disabled"],
                "retired": ["disabled"],
            },
            initial=["next", "active"],
        ),
    ]
