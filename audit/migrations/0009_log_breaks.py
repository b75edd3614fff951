"""The breaks after which the log continues under another name. Such a row is never changed."""

from django.db import migrations, models

from audit.db.triggers import append_only


class Migration(migrations.Migration):
    dependencies = [("audit", "0008_dropped_months")]

    operations = [
        migrations.CreateModel(
            name="LogBreak",
            fields=[
                ("name", models.CharField(max_length=14, primary_key=True, serialize=False)),
                ("previous", models.CharField(blank=True, max_length=14)),
                ("size", models.BigIntegerField()),
                ("root", models.BinaryField(max_length=32)),
                ("signed", models.BigIntegerField()),
                ("archived", models.BigIntegerField()),
                ("lost", models.JSONField(default=list)),
                ("at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("archived__gte", 0), ("signed__gte", 0), ("size__gte", 0)
                        ),
                        name="log_break_sizes",
                    )
                ]
            },
        ),
        append_only("audit_logbreak", unique=("name",)),
    ]
