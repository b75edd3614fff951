"""A human can be deleted: the row stays, in a state from which nothing leads back."""

from django.db import migrations, models

from audit.db.triggers import state_machine, when_undone


class Migration(migrations.Migration):
    dependencies = [
        ("registry", "0003_who_suspended"),
    ]

    operations = [
        when_undone(
            state_machine(
                "registry_human",
                "status",
                initial=["active"],
                transitions={"active": ["suspended"], "suspended": ["active"]},
            )
        ),
        migrations.RemoveConstraint(
            model_name="human",
            name="human_status",
        ),
        migrations.AlterField(
            model_name="human",
            name="status",
            field=models.CharField(
                choices=[("active", "Active"), ("suspended", "Suspended"), ("deleted", "Deleted")],
                default="active",
                max_length=16,
            ),
        ),
        migrations.AddConstraint(
            model_name="human",
            constraint=models.CheckConstraint(
                condition=models.Q(("status__in", ["active", "suspended", "deleted"])),
                name="human_status",
            ),
        ),
        # SQLite rebuilt the table without its triggers.
        state_machine(
            "registry_human",
            "status",
            initial=["active"],
            transitions={"active": ["suspended", "deleted"], "suspended": ["active", "deleted"]},
        ),
    ]
