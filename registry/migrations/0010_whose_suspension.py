"""Owner and admin each suspend an agent or a grant on their own; suspensions of agents and service providers are counted."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0009_restored_cause")]

    operations = [
        migrations.AddField("agent", "suspended_by_owner", models.BooleanField(null=True)),
        migrations.AddField("agent", "suspensions", models.PositiveIntegerField(null=True)),
        migrations.AddField("grant", "suspended_by_owner", models.BooleanField(null=True)),
        migrations.AddField(
            "serviceprovider", "suspensions", models.PositiveIntegerField(null=True)
        ),
    ]
