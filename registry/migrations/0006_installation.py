"""One row for what all processes of the installation share. It is written by `manage.py record_settings` alone."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0005_what_ended_is_found_by_index")]

    operations = [
        migrations.CreateModel(
            name="Installation",
            fields=[
                (
                    "id",
                    models.PositiveSmallIntegerField(default=1, primary_key=True, serialize=False),
                ),
                ("fingerprint", models.JSONField(default=dict)),
                ("recorded_at", models.DateTimeField()),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("id", 1)), name="installation_only_one"
                    )
                ]
            },
        )
    ]
