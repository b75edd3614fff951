"""Renewals of grants that their owners asked for and that are not signed yet."""

import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0020_human_language")]

    operations = [
        migrations.CreateModel(
            name="Renewal",
            fields=[
                (
                    "grant",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        related_name="renewal",
                        serialize=False,
                        to="registry.grant",
                    ),
                ),
                ("asked_at", models.DateTimeField()),
            ],
        ),
    ]
