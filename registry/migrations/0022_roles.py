"""The role of an administrator who is not an owner (ADR 50)."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("registry", "0021_renewal")]

    operations = [
        migrations.AddField("human", "admin_role", models.CharField(max_length=16, null=True)),
    ]
